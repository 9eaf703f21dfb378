// What the current CUDA device is, and plans for it.
#pragma once

#include "plan.h"

namespace fusedrnn::cuda {

CudaDevice current_device();

// Its parts: what takes no time to ask, and the rest.
CudaDevice ask_device();
void ask_further(CudaDevice& device);

// The plan on the current device; those made last are remembered, since a plan weighs hundreds of
// teams.
CudaPlan plan_here(const Shape& shape, Pass pass, bool allow_tf32);

}  // namespace fusedrnn::cuda
