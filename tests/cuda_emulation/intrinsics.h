// What a kernel's source sees of CUDA C++: built-in variables, barriers, warp collectives, atomics,
// fences, cached loads and arithmetic intrinsics, under CUDA's names.
//
// `__shared__` and `__cluster_dims__` are taken away: shared memory is declared by the macros of
// csrc/cuda/gpu.cuh, a cluster's size is given at the launch.
#pragma once

#include <cmath>
#include <cstring>

#include "device.h"

#undef __shared__
#undef __cluster_dims__
#undef __launch_bounds__
#define __launch_bounds__(...)
#define __builtin_assume(condition)

// Shared memory is found by the address of a static variable, one for each declaration (and each
// instantiation of the function around it).
#define FUSEDRNN_SHARED(type, name, extents)      \
  static char name##_key;                         \
  using name##_type = type extents;               \
  name##_type& name = *static_cast<name##_type*>( \
      ::emulation::static_shared(&name##_key, #name, sizeof(name##_type)))
#define FUSEDRNN_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::emulation::dynamic_shared())

// Variables, not macros: launch configurations have members of the same names.
inline const uint3& threadIdx = emulation::builtins.thread_index;
inline const uint3& blockIdx = emulation::builtins.block_index;
inline const dim3& blockDim = emulation::builtins.block_size;
inline const dim3& gridDim = emulation::builtins.grid_size;
constexpr int warpSize = 32;

// ---- Barriers and fences --------------------------------------------------------------------

#define EMULATION_HERE emulation::Where where = emulation::Where::here()

inline void __syncthreads(EMULATION_HERE) { emulation::block_barrier(where); }
inline int __syncthreads_count(int predicate, EMULATION_HERE) {
  return emulation::block_barrier_count(predicate, where);
}
inline int __syncthreads_or(int predicate, EMULATION_HERE) {
  return emulation::block_barrier_count(predicate, where) != 0;
}
inline int __syncthreads_and(int predicate, EMULATION_HERE) {
  return emulation::block_barrier_count(!predicate, where) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, EMULATION_HERE) {
  emulation::warp_barrier(mask, where);
}
inline void __threadfence() { emulation::fence(true); }
inline void __threadfence_system() { emulation::fence(true); }
inline void __threadfence_block() { emulation::fence(false); }
inline void __nanosleep(unsigned, EMULATION_HERE) { emulation::yield(where); }
[[noreturn]] inline void __trap(EMULATION_HERE) { emulation::fail(where, "__trap"); }

// ---- Warp collectives -----------------------------------------------------------------------

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATION_HERE) {
  const unsigned inside = unsigned(width) - 1, lane = emulation::builtins.lane;
  const unsigned from = (lane & ~inside) | (unsigned(source) & inside);
  return emulation::shuffle(mask, "__shfl_sync", &value, sizeof(T), from, where), value;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, EMULATION_HERE) {
  const unsigned lane = emulation::builtins.lane, other = lane ^ unsigned(with);
  const unsigned end = (lane & ~(unsigned(width) - 1)) + unsigned(width);
  const unsigned from = other < end ? other : lane;
  return emulation::shuffle(mask, "__shfl_xor_sync", &value, sizeof(T), from, where), value;
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, EMULATION_HERE) {
  const unsigned inside = unsigned(width) - 1, lane = emulation::builtins.lane;
  const unsigned from = (lane & inside) + by < unsigned(width) ? lane + by : lane;
  return emulation::shuffle(mask, "__shfl_down_sync", &value, sizeof(T), from, where), value;
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, EMULATION_HERE) {
  const unsigned inside = unsigned(width) - 1, lane = emulation::builtins.lane;
  const unsigned from = (lane & inside) < by ? lane : lane - by;
  return emulation::shuffle(mask, "__shfl_up_sync", &value, sizeof(T), from, where), value;
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATION_HERE) {
  return emulation::vote(mask, "__ballot_sync", predicate, where);
}
inline int __any_sync(unsigned mask, int predicate, EMULATION_HERE) {
  return emulation::vote(mask, "__any_sync", predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATION_HERE) {
  return emulation::vote(mask, "__all_sync", !predicate, where) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, EMULATION_HERE) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  return emulation::match(mask, bits, where);
}
#define EMULATION_REDUCE(name, how)                                                               \
  inline unsigned name(unsigned mask, unsigned value, EMULATION_HERE) {                           \
    return emulation::reduce(mask, emulation::Reduction::how, value, false, where);               \
  }                                                                                               \
  inline int name(unsigned mask, int value, EMULATION_HERE) {                                     \
    return int(emulation::reduce(mask, emulation::Reduction::how, unsigned(value), true, where)); \
  }
EMULATION_REDUCE(__reduce_add_sync, add)
EMULATION_REDUCE(__reduce_min_sync, min)
EMULATION_REDUCE(__reduce_max_sync, max)
EMULATION_REDUCE(__reduce_and_sync, bit_and)
EMULATION_REDUCE(__reduce_or_sync, bit_or)
EMULATION_REDUCE(__reduce_xor_sync, bit_xor)
#undef EMULATION_REDUCE
// The hardware may answer with any set of lanes that has the caller: the least helpful.
inline unsigned __activemask() { return 1u << emulation::builtins.lane; }

// ---- Atomics --------------------------------------------------------------------------------

// Relaxed, as CUDA's are: order comes from fences. An atomic that changes nothing is how a thread
// polls, so it lets the others run. Never inlined: the race check's own instrumentation would see
// a plain access.
#define EMULATION_ATOMIC(name, changed)                                                  \
  template <class T>                                                                     \
  __attribute__((noinline, no_sanitize("thread"))) T name(T* p, std::common_type_t<T> v, \
                                                          EMULATION_HERE) {              \
    emulation::before_atomic(p, sizeof(T), true, emulation::relaxed, where);             \
    const T old = *p;                                                                    \
    const T now = T(changed);                                                            \
    *p = now;                                                                            \
    if (memcmp(&old, &now, sizeof(T)) == 0) emulation::yield(where);                     \
    return old;                                                                          \
  }
EMULATION_ATOMIC(atomicAdd, old + v)
EMULATION_ATOMIC(atomicSub, old - v)
EMULATION_ATOMIC(atomicMin, v < old ? v : old)
EMULATION_ATOMIC(atomicMax, old < v ? v : old)
EMULATION_ATOMIC(atomicAnd, old& v)
EMULATION_ATOMIC(atomicOr, old | v)
EMULATION_ATOMIC(atomicXor, old ^ v)
EMULATION_ATOMIC(atomicExch, v)
#undef EMULATION_ATOMIC
template <class T>
__attribute__((noinline, no_sanitize("thread"))) T atomicCAS(T* p, std::common_type_t<T> expected,
                                                             std::common_type_t<T> v,
                                                             EMULATION_HERE) {
  emulation::before_atomic(p, sizeof(T), true, emulation::relaxed, where);
  const T old = *p;
  if (old == expected) *p = v;
  if (!(old == expected)) emulation::yield(where);
  return old;
}

// ---- Cached loads and stores ----------------------------------------------------------------

template <class T>
T __ldg(const T* p, EMULATION_HERE) {
#ifdef __SANITIZE_THREAD__
  emulation::before_read_only_load(p, sizeof(T), where);
#else
  (void)where;
#endif
  return *p;
}
#define EMULATION_LOAD(name) \
  template <class T>         \
  T name(const T* p) {       \
    return *p;               \
  }
#define EMULATION_STORE(name) \
  template <class T>          \
  void name(T* p, T value) {  \
    *p = value;               \
  }
EMULATION_LOAD(__ldca)
EMULATION_LOAD(__ldcg)
EMULATION_LOAD(__ldcs)
EMULATION_LOAD(__ldcv)
EMULATION_LOAD(__ldlu)
EMULATION_STORE(__stcg)
EMULATION_STORE(__stcs)
EMULATION_STORE(__stwb)
EMULATION_STORE(__stwt)
#undef EMULATION_LOAD
#undef EMULATION_STORE

// ---- Arithmetic -----------------------------------------------------------------------------

#define __expf(x) ::expf(x)  // glibc declares functions of these names: macros take precedence
#define __logf(x) ::logf(x)
#define __log2f(x) ::log2f(x)
#define __powf(x, y) ::powf(x, y)
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
inline double rsqrt(double a) { return 1.0 / std::sqrt(a); }
inline float __saturatef(float a) { return std::fmin(1.0f, std::fmax(0.0f, a)); }
inline float __double2float_rn(double a) { return float(a); }
inline int __float2int_rn(float a) { return int(std::nearbyint(a)); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }

template <class To, class From>
To emulation_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}
inline float __uint_as_float(unsigned v) { return emulation_bits<float>(v); }
inline unsigned __float_as_uint(float v) { return emulation_bits<unsigned>(v); }
inline float __int_as_float(int v) { return emulation_bits<float>(v); }
inline int __float_as_int(float v) { return emulation_bits<int>(v); }
inline double __longlong_as_double(long long v) { return emulation_bits<double>(v); }
inline long long __double_as_longlong(double v) { return emulation_bits<long long>(v); }

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
