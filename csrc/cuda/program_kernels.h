// The stepwise kernels of a cell that is a program, made at run time: its text becomes C++
// (stepwise/program_source.h), NVRTC compiles that for the current device, and the runtime loads it
// (program_library.h). This happens once for each program, dtype and kind of device in a process,
// and takes some tenths of a second. What is made then stays.
#pragma once

#include <vector>

#include "layer/problem.h"

namespace fusedrnn::cuda {

// What the runtime takes as the kernels' addresses on the current device, in the order of
// KernelSource. If they have to be made, `stream` (a cudaStream_t) must not be in capture. Throws
// std::runtime_error.
const std::vector<const void*>& program_kernels(const Program& program, Dtype dtype, void* stream);

}  // namespace fusedrnn::cuda
