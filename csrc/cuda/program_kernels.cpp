#include "program_kernels.h"

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <tuple>
#include <unordered_map>

#include "device.h"
#include "program_library.h"

namespace fusedrnn::cuda {
namespace {

// Kernels of a program, or why there are none.
struct Made {
  std::vector<const void*> kernels;
  std::string error;
};
// What is made together: for a capability the kernels of a dtype, or a pass, arithmetic and team.
using Part = std::tuple<int, int, int, int>;
using OfProgram = std::map<Part, std::unique_ptr<const Made>>;
constexpr int kStepwise = -1;  // in the place of a pass

void refuse_in_capture(const Program& program, cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  if (error == cudaSuccess && status == cudaStreamCaptureStatusNone) return;
  cudaGetLastError();  // that another stream is captured, if it is that
  throw std::runtime_error(std::string("cell: the kernels of ") + program.facts.names.cell +
                           " are compiled when they are first needed, which cannot be while a CUDA "
                           "graph is captured; call the layer once before the capture");
}

std::unique_ptr<const Made> make(const Program& program, const KernelSource& source,
                                 int capability) {
  auto made = std::make_unique<Made>();
  try {
    made->kernels = load_kernels(source, capability);
  } catch (const std::runtime_error& error) {
    made->error = std::string("cell: no CUDA kernels could be made of ") +
                  program.facts.names.cell + ": " + error.what();
  }
  return made;
}

// The kernels of a part, which source() is of.
template <class Source>
const std::vector<const void*>& kernels_of_part(const Program& program, int pass, int number,
                                                CudaTeam team, void* stream, const Source& source) {
  const int capability = ask_device().capability;
  static std::mutex mutex;
  static auto& known = *new std::unordered_map<std::string, OfProgram>;  // stays to the end
  const std::lock_guard<std::mutex> guard(mutex);
  std::unique_ptr<const Made>& made =
      known[program.text][{capability, pass, number, static_cast<int>(team)}];
  if (!made) {
    refuse_in_capture(program, static_cast<cudaStream_t>(stream));
    made = make(program, source(), capability);
  }
  if (!made->error.empty()) throw std::runtime_error(made->error);
  return made->kernels;
}

}  // namespace

const std::vector<const void*>& program_kernels(const Program& program, Dtype dtype, void* stream) {
  return kernels_of_part(program, kStepwise, static_cast<int>(dtype), CudaTeam::stepwise, stream,
                         [&] { return kernel_source(program, dtype); });
}

const void* program_walk(const Program& program, const WalkKernel& walk, void* stream) {
  return kernels_of_part(program, static_cast<int>(walk.pass), static_cast<int>(walk.arithmetic),
                         walk.team, stream, [&] { return walk_source(program, walk); })
      .front();
}

}  // namespace fusedrnn::cuda
