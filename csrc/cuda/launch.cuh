// Launching a kernel, with its failure as an exception, and the grid of the kernels that go over
// rows and columns.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "grid.cuh"

namespace fusedrnn::cuda {

// What the failure of `what` is told as.
inline std::string told(cudaError_t error, const char* what) {
  std::string text = std::string("CUDA: ") + what + " failed: " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice)
    text +=
        "; this build has no code for this GPU: build with TORCH_CUDA_ARCH_LIST set to its "
        "compute capability (fusedrnn.build_info() tells what was built)";
  if (error == cudaErrorInsufficientDriver)
    text += "; this build is of CUDA " + std::to_string(CUDART_VERSION / 1000) + "." +
            std::to_string(CUDART_VERSION % 1000 / 10) +
            ": update the driver, or build with a CUDA toolkit that it serves";
  return text;
}

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // not left for whoever asks next
  throw std::runtime_error(told(error, what));
}

template <class... Parameters, class... Arguments>
void launch(const char* what, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), what);
}

struct Grid {
  dim3 grid, block;
};

inline Grid grid_over(int64_t rows, int64_t columns, int per_thread, int z = 1) {
  const int64_t places = (columns + per_thread - 1) / per_thread;
  unsigned x = 1;
  while (x < places && x < kBlockThreads) x *= 2;
  const unsigned y = kBlockThreads / x;
  const auto blocks = [](int64_t n, unsigned each) {
    return static_cast<unsigned>((n + each - 1) / each);
  };
  return {dim3(blocks(rows, y), blocks(places, x), static_cast<unsigned>(z)), dim3(x, y)};
}

}  // namespace fusedrnn::cuda
