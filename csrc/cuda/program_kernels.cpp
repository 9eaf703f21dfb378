#include "program_kernels.h"

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "device.h"
#include "program_library.h"

namespace fusedrnn::cuda {
namespace {

// Kernels of a program, or why there are none.
struct Made {
  std::vector<const void*> kernels;
  std::string error;
};
using OfProgram = std::map<std::pair<Dtype, int>, std::unique_ptr<const Made>>;  // by capability

void refuse_in_capture(const Program& program, cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  if (error == cudaSuccess && status == cudaStreamCaptureStatusNone) return;
  cudaGetLastError();  // that another stream is captured, if it is that
  throw std::runtime_error(std::string("cell: the kernels of ") + program.facts.names.cell +
                           " are compiled when they are first needed, which cannot be while a CUDA "
                           "graph is captured; call the layer once before the capture");
}

std::unique_ptr<const Made> make(const Program& program, Dtype dtype, int capability) {
  auto made = std::make_unique<Made>();
  try {
    made->kernels = load_kernels(kernel_source(program, dtype), capability);
  } catch (const std::runtime_error& error) {
    made->error = std::string("cell: no CUDA kernels could be made of ") +
                  program.facts.names.cell + ": " + error.what();
  }
  return made;
}

}  // namespace

const std::vector<const void*>& program_kernels(const Program& program, Dtype dtype, void* stream) {
  const int capability = ask_device().capability;
  static std::mutex mutex;
  static auto& known = *new std::unordered_map<std::string, OfProgram>;  // stays to the end
  const std::lock_guard<std::mutex> guard(mutex);
  std::unique_ptr<const Made>& made = known[program.text][{dtype, capability}];
  if (!made) {
    refuse_in_capture(program, static_cast<cudaStream_t>(stream));
    made = make(program, dtype, capability);
  }
  if (!made->error.empty()) throw std::runtime_error(made->error);
  return made->kernels;
}

}  // namespace fusedrnn::cuda
