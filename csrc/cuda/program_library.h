// Kernels that are compiled at run time, and loaded. The tests' emulated device has a
// program_library.cpp of its own.
#pragma once

#include <string>
#include <vector>

#include "stepwise/program_source.h"

namespace fusedrnn::cuda {

// The kernels of a source for a compute capability (times ten): what the CUDA runtime takes as
// their addresses, in the order of their names. They stay for good. Throws std::runtime_error.
std::vector<const void*> load_kernels(const KernelSource& source, int capability);

// Why there can be none in this process, and what to do about it; empty if there can.
std::string why_no_kernels();

}  // namespace fusedrnn::cuda
