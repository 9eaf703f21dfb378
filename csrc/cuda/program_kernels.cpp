#include "program_kernels.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <variant>

#include "capture.h"
#include "device.h"
#include "program_library.h"

namespace fusedrnn::cuda {
namespace {

// Kernels of a program, or why there are none.
struct Made {
  std::vector<const void*> kernels;
  std::string error;
};
// What is compiled together: the stepwise kernels of a dtype, or one walk.
using Part = std::variant<Dtype, WalkKernel>;
using OfProgram = std::map<std::pair<int, Part>, std::unique_ptr<const Made>>;  // by capability

KernelSource source_of(const Program& program, const Part& part) {
  if (const Dtype* const dtype = std::get_if<Dtype>(&part)) return kernel_source(program, *dtype);
  return walk_source(program, std::get<WalkKernel>(part));
}

void refuse_in_capture(const Program& program, cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  if (error == cudaSuccess && status == cudaStreamCaptureStatusNone) return;
  cudaGetLastError();  // that another stream is captured, if it is that
  throw std::runtime_error(std::string("cell: the kernels of ") + program.facts.names.cell +
                           " are compiled when they are first needed, which cannot be while a CUDA "
                           "graph is captured; call the layer once before the capture");
}

std::atomic<KeepImages> g_keep_images{nullptr};

// An image that is to be compiled.
struct Work {
  const KernelSource& source;
  int capability;
  std::string image, error;
};

const char* compile_work(void* work, uint64_t* bytes) {
  Work& of = *static_cast<Work*>(work);
  try {
    of.image = compile_image(of.source, of.capability);
  } catch (const std::exception& error) {
    of.error = error.what();
    return nullptr;
  }
  *bytes = of.image.size();
  return of.image.data();
}

std::vector<const void*> load(const KernelSource& source, int capability) {
  const KeepImages keep = g_keep_images;
  if (!keep) return load_image(compile_image(source, capability));
  std::string recipe = compiler_of_images(capability) + source.text;
  for (const std::string& name : source.names) recipe += name + "\n";
  Work work{source, capability, {}, {}};
  uint64_t bytes = 0;
  const char* const kept = keep(recipe.c_str(), compile_work, &work, &bytes);
  if (!work.error.empty()) throw std::runtime_error(work.error);
  const bool compiled = !work.image.empty();
  if (kept && !compiled) {
    try {
      return load_image({kept, bytes});
    } catch (const std::runtime_error&) {  // another driver, perhaps: it is compiled again
    }
  }
  return load_image(compiled ? work.image : compile_image(source, capability));
}

std::unique_ptr<const Made> make(const Program& program, const KernelSource& source,
                                 int capability) {
  auto made = std::make_unique<Made>();
  const RelaxedCapture relaxed;  // of another thread's stream
  try {
    made->kernels = load(source, capability);
  } catch (const std::runtime_error& error) {
    made->error = std::string("cell: no CUDA kernels could be made of ") +
                  program.facts.names.cell + ": " + error.what();
  }
  return made;
}

const std::vector<const void*>& kernels_of(const Program& program, const Part& part, void* stream) {
  const int capability = ask_device().capability;
  static std::mutex mutex;
  static auto& known = *new std::unordered_map<std::string, OfProgram>;  // stays to the end
  const std::lock_guard<std::mutex> guard(mutex);
  std::unique_ptr<const Made>& made = known[program.text][{capability, part}];
  if (!made) {
    refuse_in_capture(program, static_cast<cudaStream_t>(stream));
    made = make(program, source_of(program, part), capability);
  }
  if (!made->error.empty()) throw std::runtime_error(made->error);
  return made->kernels;
}

}  // namespace

void keep_images_by(KeepImages keep) { g_keep_images = keep; }

const std::vector<const void*>& program_kernels(const Program& program, Dtype dtype, void* stream) {
  return kernels_of(program, dtype, stream);
}

const void* program_walk(const Program& program, const WalkKernel& walk, void* stream) {
  return kernels_of(program, walk, stream).front();
}

}  // namespace fusedrnn::cuda
