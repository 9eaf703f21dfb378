// Kernels that are compiled at run time, and loaded. The tests' emulated device has a
// program_library.cpp of its own.
#pragma once

#include <string>
#include <vector>

#include "program_source.h"

namespace fusedrnn::cuda {

// The kernels of a source, compiled for a compute capability (times ten): bytes that another
// process can load, too. Throws std::runtime_error.
std::string compile_image(const KernelSource& source, int capability);

// Names all that an image depends on, beside its source.
std::string compiler_of_images(int capability);

// The kernels of an image: what the CUDA runtime takes as their addresses, in the order of the
// source's names. They stay for good. Throws std::runtime_error.
std::vector<const void*> load_image(const std::string& image);

// Why there can be none in this process, and what to do about it; empty if there can.
std::string why_no_kernels();

}  // namespace fusedrnn::cuda
