// Storage types, the types that sums are made in, and moving both through registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../problem.h"

namespace fusedrnn {

template <class E>
struct Storage;  // the sum's type and the Dtype of a storage type
template <>
struct Storage<double> {
  using Sum = double;
  static constexpr Dtype dtype = Dtype::f64, sum_dtype = Dtype::f64;
};
template <>
struct Storage<float> {
  using Sum = float;
  static constexpr Dtype dtype = Dtype::f32, sum_dtype = Dtype::f32;
};
template <>
struct Storage<__nv_bfloat16> {
  using Sum = float;
  static constexpr Dtype dtype = Dtype::bf16, sum_dtype = Dtype::f32;
};
template <>
struct Storage<__half> {
  using Sum = float;
  static constexpr Dtype dtype = Dtype::f16, sum_dtype = Dtype::f32;
};

template <class E>
using Sum = typename Storage<E>::Sum;

// A sum's type is its own storage type, but for the half-precision types.
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

// The functions that cell.h asks for, as accurate as CUDA has them. Far out sigmoid is exactly 0
// and 1, since exp overflows to infinity there.
template <class S>
struct DeviceMath;
template <>
struct DeviceMath<float> {
  __device__ __forceinline__ static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
  __device__ __forceinline__ static float tanh(float x) { return tanhf(x); }
  __device__ __forceinline__ static float relu(float x) { return x <= 0.0f ? 0.0f : x; }
  __device__ __forceinline__ static float where_positive(float h, float x) {
    return h <= 0.0f ? 0.0f : x;
  }
};
template <>
struct DeviceMath<double> {
  __device__ __forceinline__ static double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
  __device__ __forceinline__ static double tanh(double x) { return ::tanh(x); }
  __device__ __forceinline__ static double relu(double x) { return x <= 0.0 ? 0.0 : x; }
  __device__ __forceinline__ static double where_positive(double h, double x) {
    return h <= 0.0 ? 0.0 : x;
  }
};

}  // namespace fusedrnn
