// Storage types, the types that sums are made in, and moving both through registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstring>

#include "cells/cell.h"
#include "layer/sizes.h"

namespace fusedrnn::cuda {

constexpr int kOtherStates = kMaxStates - 1;  // all but h

template <class S, Dtype kDtype, Dtype kSumDtype>
struct StoredAs {
  using Sum = S;
  static constexpr Dtype dtype = kDtype, sum_dtype = kSumDtype;
};
template <class E>
struct Storage;  // the sum's type and the Dtypes of a storage type
template <>
struct Storage<double> : StoredAs<double, Dtype::f64, Dtype::f64> {};
template <>
struct Storage<float> : StoredAs<float, Dtype::f32, Dtype::f32> {};
template <>
struct Storage<__nv_bfloat16> : StoredAs<float, Dtype::bf16, Dtype::f32> {};
template <>
struct Storage<__half> : StoredAs<float, Dtype::f16, Dtype::f32> {};

template <class E>
using Sum = typename Storage<E>::Sum;

// A sum's type is its own storage type, except for the half-precision types.
template <class E>
constexpr bool kIsHalf = sizeof(E) == 2;

__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

__device__ __forceinline__ void narrow(double x, double& to) { to = x; }
__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrow(float x, __half& to) { to = __float2half_rn(x); }

// What one instruction moves: up to 16 bytes.
template <class E, int N>
struct alignas(sizeof(E) * N) Pack {
  static_assert(sizeof(E) * N <= 16, "one access");
  E value[N];
};
template <class E, int N>
constexpr int kPerAccess = sizeof(E) * N <= 16 ? N : 16 / static_cast<int>(sizeof(E));

template <int N, class E, class S>
__device__ __forceinline__ void load(const E* from, S (&to)[N]) {
  constexpr int W = kPerAccess<E, N>;
#pragma unroll
  for (int i = 0; i < N; i += W) {
    const Pack<E, W> pack = *reinterpret_cast<const Pack<E, W>*>(from + i);
#pragma unroll
    for (int j = 0; j < W; ++j) to[i + j] = widen(pack.value[j]);
  }
}
template <int N, class E, class S>
__device__ __forceinline__ void store(const S (&from)[N], E* to) {
  constexpr int W = kPerAccess<E, N>;
#pragma unroll
  for (int i = 0; i < N; i += W) {
    Pack<E, W> pack;
#pragma unroll
    for (int j = 0; j < W; ++j) narrow(from[i + j], pack.value[j]);
    *reinterpret_cast<Pack<E, W>*>(to + i) = pack;
  }
}
// The same, or zeros where there is nothing to load.
template <int N, class E, class S>
__device__ __forceinline__ void load_or_zero(const E* from, S (&to)[N]) {
  if (from) return load<N>(from, to);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = 0;
}

// Two values that a thread keeps for later, in one register if they fit. Not for values that are
// still being loaded: packing waits for them.
template <class E, bool kFit = kIsHalf<E>>
struct Pair {
  E value[2];
  __device__ __forceinline__ void set(E first, E second) { value[0] = first, value[1] = second; }
  __device__ __forceinline__ E get(int i) const { return value[i]; }
};
template <class E>
struct Pair<E, true> {
  uint32_t bits;
  __device__ __forceinline__ void set(E first, E second) {
    uint16_t words[2];
    memcpy(&words[0], &first, sizeof(E));
    memcpy(&words[1], &second, sizeof(E));
    bits = words[0] | static_cast<uint32_t>(words[1]) << 16;
  }
  __device__ __forceinline__ E get(int i) const {
    const uint16_t word = static_cast<uint16_t>(i ? bits >> 16 : bits);
    E value;
    memcpy(&value, &word, sizeof(E));
    return value;
  }
};
template <class E>
__device__ __forceinline__ E narrowed(Sum<E> x) {
  E value;
  narrow(x, value);
  return value;
}

// In fp32 good to 2 ulp, without the branches of an exact division; 0 of infinity.
__device__ __forceinline__ double reciprocal(double x) { return 1 / x; }
__device__ __forceinline__ float reciprocal(float x) { return __fdividef(1.0f, x); }

// A product that is rounded, whatever is done with it.
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }

// The functions that a cell asks for, otherwise as accurate as CUDA has them. Far out sigmoid is
// exactly 0 and 1, since exp overflows to infinity there.
template <class S>
struct DeviceMath {
  __device__ __forceinline__ static S sigmoid(S x) { return cuda::reciprocal(1 + ::exp(-x)); }
  __device__ __forceinline__ static S tanh(S x) { return ::tanh(x); }
  __device__ __forceinline__ static S multiply_add(S a, S b, S c) { return ::fma(a, b, c); }
  __device__ __forceinline__ static S relu(S x) { return x <= 0 ? 0 : x; }
  __device__ __forceinline__ static S where_positive(S h, S x) { return h <= 0 ? 0 : x; }

  // Programs (cells/generate.h) also need these. Infinities and NaNs are treated as in
  // cpu/functions.h.
  __device__ __forceinline__ static S number(double x) { return static_cast<S>(x); }
  __device__ __forceinline__ static S infinity() {
    return static_cast<S>(__longlong_as_double(0x7ff0000000000000));
  }
  __device__ __forceinline__ static S nan() {
    return static_cast<S>(__longlong_as_double(0x7ff8000000000000));
  }
  __device__ __forceinline__ static S reciprocal(S x) { return 1 / x; }
  __device__ __forceinline__ static S sqrt(S x) { return ::sqrt(x); }
  __device__ __forceinline__ static S abs(S x) { return ::fabs(x); }
  __device__ __forceinline__ static S sign(S x) { return gt(x, 0) - gt(0, x); }  // of a NaN 0
  __device__ __forceinline__ static S exp(S x) { return ::exp(x); }
  __device__ __forceinline__ static S expm1(S x) { return ::expm1(x); }
  __device__ __forceinline__ static S log(S x) { return ::log(x); }
  __device__ __forceinline__ static S log1p(S x) { return ::log1p(x); }
  __device__ __forceinline__ static S softplus(S x) {
    return maximum(x, 0) + ::log1p(::exp(-::fabs(x)));
  }
  __device__ __forceinline__ static S erf(S x) { return ::erf(x); }
  __device__ __forceinline__ static S sin(S x) { return ::sin(x); }
  __device__ __forceinline__ static S cos(S x) { return ::cos(x); }
  // A NaN in either is the result.
  __device__ __forceinline__ static S maximum(S a, S b) { return a != a || a > b ? a : b; }
  __device__ __forceinline__ static S minimum(S a, S b) { return a != a || a < b ? a : b; }
  __device__ __forceinline__ static S gt(S a, S b) { return a > b ? 1 : 0; }
  __device__ __forceinline__ static S ge(S a, S b) { return a >= b ? 1 : 0; }
  __device__ __forceinline__ static S eq(S a, S b) { return a == b ? 1 : 0; }
  __device__ __forceinline__ static S ne(S a, S b) { return a != b ? 1 : 0; }
  __device__ __forceinline__ static S select(S m, S a, S b) { return m != 0 ? a : b; }
};

}  // namespace fusedrnn::cuda
