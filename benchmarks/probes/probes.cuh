// What the probes have in common: their clock, their results, and how they are launched.
#pragma once

#include <cuda_runtime.h>
#include <cstdint>

#ifndef __CUDACC__
#include <chrono>
#endif

#define PROBE extern "C" __attribute__((visibility("default"))) int

namespace {

// A kernel's results: the cycles of all rounds, and how many values were not as expected.
struct Found {
  int64_t cycles, wrong;
};

// Cycles; nanoseconds where the GPU is emulated, which mean nothing there.
__device__ __forceinline__ int64_t now() {
#ifdef __CUDACC__
  return clock64();
#else
  return std::chrono::steady_clock::now().time_since_epoch().count();
#endif
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), unsigned grid, unsigned cluster, unsigned threads,
                   size_t bytes, cudaStream_t stream, const Arguments&... arguments) {
  constexpr unsigned kPortable = 8;  // blocks of a cluster
  cudaLaunchAttribute of_cluster = {};
  of_cluster.id = cudaLaunchAttributeClusterDimension;
  of_cluster.val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  if (cluster > 1) config.attrs = &of_cluster, config.numAttrs = 1;
  cudaError_t error = cudaSuccess;
  if (bytes)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(bytes));
  if (error == cudaSuccess && cluster > kPortable)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) cudaGetLastError();  // not left for whoever asks next
  return error;
}

}  // namespace
