// The kernels of a cell that is a program, made at run time: its text becomes C++
// (program_source.h), NVRTC compiles that for the current device, and the runtime loads it
// (program_library.h). This happens once for each program, dtype and kind of device in a process,
// and takes some tenths of a second; for a team's walk once more in each pass, and some seconds.
// What is made stays for good, and `keep_images_by` can keep it between processes.
#pragma once

#include <cstdint>
#include <vector>

#include "program_source.h"

namespace fusedrnn::cuda {

// What the runtime takes as the stepwise kernels' addresses on the current device, in the order of
// kernel_source. If they have to be made, `stream` (a cudaStream_t) must not be in capture. Throws
// std::runtime_error.
const std::vector<const void*>& program_kernels(const Program& program, Dtype dtype, void* stream);

// The kernel of a walk, likewise.
const void* program_walk(const Program& program, const WalkKernel& walk, void* stream);

// Keeps images (program_library.h) between processes. It is given a recipe, which names all that an
// image depends on, and a function that compiles it: compile(work, &bytes) returns the image, or
// null if that failed. It returns the image that it had kept or that was compiled now, which stays
// until the calling thread calls it again; or null. It compiles at most once.
using CompileImage = const char* (*)(void* work, uint64_t* bytes);
using KeepImages = const char* (*)(const char* recipe, CompileImage compile, void* work,
                                   uint64_t* bytes);
void keep_images_by(KeepImages keep);

}  // namespace fusedrnn::cuda
