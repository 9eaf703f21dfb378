#include "offsets.h"

#include <algorithm>

#include "launch.cuh"

namespace fusedrnn::cuda {
namespace {

struct Part {  // parameters are 4 KiB at most
  static constexpr int64_t kMost = 480;
  int count = 0;
  int64_t offsets[kMost];
};

__global__ void __launch_bounds__(kBlockThreads)
    store_offsets(const __grid_constant__ Part part, int64_t* to) {
  for (int i = static_cast<int>(threadIdx.x); i < part.count; i += static_cast<int>(blockDim.x))
    to[i] = part.offsets[i];
}

}  // namespace

void copy_offsets(const int64_t* offsets, int64_t count, int64_t* to, cudaStream_t stream) {
  for (int64_t first = 0; first < count; first += Part::kMost) {
    Part part;
    part.count = static_cast<int>(std::min(count - first, Part::kMost));
    std::copy_n(offsets + first, part.count, part.offsets);
    launch("copying batch sizes", store_offsets, dim3(1), dim3(kBlockThreads), stream, part,
           to + first);
  }
}

}  // namespace fusedrnn::cuda
