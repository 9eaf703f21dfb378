// The device that the emulation pretends to be, as a kernel compiled by g++ sees it: who the
// running thread is, and what it can ask of the runtime. intrinsics.h and ptx.h give these the
// names that CUDA gives them.
//
// Every CUDA thread is a fiber, and one fiber runs at a time. A thread keeps running until it waits
// at a barrier, meets its warp in a collective, or spins; with a seed also by chance at atomics,
// fences and (in the race build) any access to memory.
#pragma once

#ifdef __CUDACC__
#error "this is what g++ sees in place of the CUDA runtime; nvcc has the real one"
#endif

#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

// Seen by the kernels that are compiled at run time, which are libraries of their own.
#pragma GCC visibility push(default)

namespace emulation {

struct Where {  // a place in a kernel's source, for reports
  const char* file;
  int line;
  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

struct Builtins {  // of the CUDA thread that runs
  uint3 thread_index, block_index;
  dim3 block_size, grid_size;
  unsigned rank, lane;  // in the block, in the warp
  unsigned cluster_rank, cluster_size;
};
extern Builtins builtins;

// Ends the launch with a report, in printf's format; a place without a line is not named.
[[noreturn]] void fail(Where where, const char* format, ...) __attribute__((format(printf, 2, 3)));

// ---- Launching ------------------------------------------------------------------------------

using Body = void (*)(void* closure);
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, Body body, void* closure);

// ---- Shared memory --------------------------------------------------------------------------

void* dynamic_shared();
void* static_shared(const void* key, const char* name, size_t bytes);
void* at_rank(const void* own, unsigned rank, Where where);

// ---- Barriers, fences, atomics --------------------------------------------------------------

void block_barrier(Where where, unsigned id = 0, unsigned threads = 0);  // 0: the whole block
int block_barrier_count(bool predicate, Where where);
void grid_barrier(Where where);
void cluster_arrive(Where where);
void cluster_wait(Where where);
void fence(bool device_scope);
void proxy_fence();       // between what this thread wrote to shared memory and bulk copies
void yield(Where where);  // a thread that waits for another lets the others run

enum Order { relaxed = 0, acquire = 1, release = 2 };
// Called before an atomic access: others may run now, the race check learns of it.
void before_atomic(const void* p, unsigned bytes, bool writes, int order, Where where);
// Called before a load through the read-only path, which may see old values.
void before_read_only_load(const void* p, unsigned bytes, Where where);

// ---- Warp collectives -----------------------------------------------------------------------

void warp_barrier(uint32_t mask, Where where);
void shuffle(uint32_t mask, const char* op, void* value, size_t bytes, unsigned source, Where);
uint32_t vote(uint32_t mask, const char* op, bool predicate, Where where);
uint32_t match(uint32_t mask, uint64_t value, Where where);
enum class Reduction { add, min, max, bit_and, bit_or, bit_xor };
uint32_t reduce(uint32_t mask, Reduction, uint32_t value, bool is_signed, Where where);

enum class Operand { bf16, f16, tf32 };
void mma(Operand operand, float* d, const uint32_t* a, const uint32_t* b, const float* c, Where);
void ldmatrix(unsigned matrices, uint32_t* r, const void* row, Where where);
uint32_t transpose(uint32_t pair, Where where);
uint32_t round_to_tf32(float x);

// ---- mbarriers and asynchronous copies ------------------------------------------------------

void mbarrier_init(uint64_t* barrier, unsigned arrivals, Where where);
void mbarrier_init_fence();
uint64_t* mbarrier_at_rank(uint64_t* own, unsigned rank, Where where);
void mbarrier_update(uint64_t* barrier, unsigned arrivals, int tx, Where where);
bool mbarrier_try_wait(uint64_t* barrier, unsigned parity, Where where);
// A store (`bytes` at most 16), or a bulk copy from this block's shared memory, to that at a rank.
void store_at_rank(void* own, const void* value, unsigned bytes, uint64_t* own_barrier,
                   unsigned rank, Where where);
void bulk_copy(void* own, const void* from, unsigned bytes, uint64_t* own_barrier, unsigned rank,
               Where where);

}  // namespace emulation

#pragma GCC visibility pop

// CUDA's own launch template: arguments convert to the kernel's parameter types here, once; every
// thread then gets its own copies.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((!std::is_reference<Parameters>::value && ...), "kernels take values");
  std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  auto body = [&] { std::apply(kernel, values); };
  return emulation::launch(
      *config, reinterpret_cast<const void*>(kernel),
      [](void* closure) { (*static_cast<decltype(body)*>(closure))(); }, &body);
}

template <class T>
cudaError_t cudaFuncSetAttribute(T* kernel, cudaFuncAttribute attribute, int value) {
  return ::cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class T>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, T* kernel) {
  return ::cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}
template <class T>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, T* kernel, int threads,
                                                          size_t dynamic_shared_bytes) {
  return ::cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      blocks, reinterpret_cast<const void*>(kernel), threads, dynamic_shared_bytes);
}
template <class T>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, T* kernel,
                                           const cudaLaunchConfig_t* config) {
  return ::cudaOccupancyMaxActiveClusters(clusters, reinterpret_cast<const void*>(kernel), config);
}
