// How one layer call runs on a CUDA device. A pure function of the sizes, so that it can be printed
// and tested anywhere; no CUDA in here.
#pragma once

#include "../problem.h"

namespace fusedrnn {

enum class CudaTeam : int {
  stepwise,  // none: per step one matrix product and one fused kernel
};

struct CudaPlan {
  CudaTeam team = CudaTeam::stepwise;
  int units_per_thread = 1;   // of the fused kernel; more than one: 16-byte accesses
  int64_t forward_steps = 1;  // steps whose input projection is computed at once
};

CudaPlan plan_cuda(const Shape& shape);

}  // namespace fusedrnn
