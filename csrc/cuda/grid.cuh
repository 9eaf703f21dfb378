// The threads of the kernels that go over rows and columns, as a kernel sees them; launch.cuh has
// the host's side.
//
// A block covers `x` neighbouring places (of N columns each) of `y` rows; rows are on the grid's
// long side. z is the kernel's own.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fusedrnn::cuda {

constexpr int kBlockThreads = 256;

struct Place {
  int64_t row, column;
};
template <int N>
__device__ __forceinline__ Place place_of_thread() {
  return {static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y,
          (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N};
}

}  // namespace fusedrnn::cuda
