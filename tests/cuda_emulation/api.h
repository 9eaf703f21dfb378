// What a launch leaves for the host: its error, and the report on it.
#pragma once

#include <string>

#include <cuda_runtime_api.h>

namespace emulation {

cudaError_t launch_ended(const std::string& report);  // an empty report: all was well

}  // namespace emulation
