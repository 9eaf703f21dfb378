// How the tests' kernels are launched, and how their blocks wait for each other.
#pragma once

#include <cuda_runtime.h>
#include <utility>

struct Shape {
  dim3 grid = 1, block = 32;
  unsigned cluster = 1;
  bool cooperative = false;
  size_t dynamic_bytes = 0;
};

template <class... Parameters, class... Arguments>
cudaError_t launch(const Shape& shape, void (*kernel)(Parameters...), Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {shape.cluster, 1, 1};
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = shape.cooperative;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.dynamic_bytes;
  config.attrs = shape.cluster == 1 ? attributes + 1 : attributes;
  config.numAttrs = shape.cluster == 1 ? 1 : 2;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

// Clusters exist from sm_90 on; elsewhere kernels that use them are empty.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define HAS_CLUSTERS 1
#else
#define HAS_CLUSTERS 0
#endif

// Spins until the flag, which only grows, has reached `value`. What was written before a fence and
// the flag is seen from then on.
__device__ inline void wait_at_least(const volatile unsigned* flag, unsigned value) {
  while (*flag < value) __nanosleep(20);
  __threadfence();
}
