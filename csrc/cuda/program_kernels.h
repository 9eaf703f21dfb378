// The kernels of a cell that is a program, made at run time: its text becomes C++
// (stepwise/program_source.h), NVRTC compiles that for the current device, and the runtime loads it
// (program_library.h). This happens once for each program, dtype and kind of device in a process,
// and takes some tenths of a second; for a team's walk once more in each pass, and some seconds.
// What is made then stays.
#pragma once

#include <vector>

#include "stepwise/program_source.h"

namespace fusedrnn::cuda {

// What the runtime takes as the stepwise kernels' addresses on the current device, in the order of
// kernel_source. If they have to be made, `stream` (a cudaStream_t) must not be in capture. Throws
// std::runtime_error.
const std::vector<const void*>& program_kernels(const Program& program, Dtype dtype, void* stream);

// The same for a walk.
const void* program_walk(const Program& program, const WalkKernel& walk, void* stream);

}  // namespace fusedrnn::cuda
