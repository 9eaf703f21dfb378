#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fusedrnn::cuda {

// Brings numbers that the host has to the device, through a kernel's parameters: no host memory has
// to outlive the launch, or a graph that captured it. Throws std::runtime_error.
void copy_offsets(const int64_t* offsets, int64_t count, int64_t* to, cudaStream_t stream);

}  // namespace fusedrnn::cuda
