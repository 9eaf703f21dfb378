// Kernels that are made at run time, on the emulated device: in place of
// csrc/cuda/program_library.cpp. Whoever loads the emulation compiles them (backend.py, with g++),
// and NVRTC, if there is one, only compiles them for tests.
#include "cuda/program_library.h"

#include <dlfcn.h>

#include <stdexcept>

#include "cuda/nvrtc/nvrtc.h"

#define EMULATION_EXPORT extern "C" __attribute__((visibility("default")))

namespace fusedrnn::cuda {
namespace {

// The path of a library of a source's kernels, whose names are one to a line; null if it could not
// be made. It stays until the next call.
using CompileBy = const char* (*)(const char* source, const char* names);
CompileBy compile = nullptr;

}  // namespace

// The path of a library.
std::string compile_image(const KernelSource& source, int) {
  std::string names;
  for (const std::string& name : source.names) names += name + "\n";
  const char* const path = compile ? compile(source.text.c_str(), names.c_str()) : nullptr;
  if (!path) throw std::runtime_error("the emulation could not compile them");
  return path;
}

std::string compiler_of_images(int capability) { return std::to_string(capability) + "\n"; }

std::vector<const void*> load_image(const std::string& image) {
  void* const library = dlopen(image.c_str(), RTLD_NOW);
  if (!library) throw std::runtime_error(dlerror());
  const auto* const kernels = static_cast<const void* const*>(dlsym(library, "kernels"));
  const auto* const count = static_cast<const int*>(dlsym(library, "kernel_count"));
  if (!kernels || !count) throw std::runtime_error("no kernels in " + image);
  return std::vector<const void*>(kernels, kernels + *count);
}

std::string why_no_kernels() { return {}; }

}  // namespace fusedrnn::cuda

using namespace fusedrnn;

EMULATION_EXPORT void fusedrnn_emulation_compile_by(cuda::CompileBy compile) {
  cuda::compile = compile;
}

// Why there is no NVRTC; empty if there is one.
EMULATION_EXPORT const char* fusedrnn_emulation_without_nvrtc() {
  static const std::string why = cuda::why_no_nvrtc();
  return why.c_str();
}

namespace {

// The log of NVRTC and ptxas for a source, compiled for a compute capability (times ten), and how
// long the code is; or what failed, and 0.
template <class Source>
const char* compile_by_nvrtc(const char* program, int capability, uint64_t* bytes,
                             const Source& source_of) {
  thread_local std::string log;
  *bytes = 0;
  try {
    const cuda::KernelSource source = source_of(*Program::parse(program));
    const cuda::Compiled compiled =
        cuda::compile_cuda(source.text, source.names, capability, {"--ptxas-options=-v"});
    log = compiled.log;
    *bytes = compiled.image.size();
  } catch (const std::exception& error) {
    log = error.what();
  }
  return log.c_str();
}

}  // namespace

EMULATION_EXPORT const char* fusedrnn_emulation_nvrtc(const char* program, int dtype,
                                                      int capability, uint64_t* bytes) {
  return compile_by_nvrtc(program, capability, bytes, [&](const Program& parsed) {
    return cuda::kernel_source(parsed, Dtype(dtype));
  });
}

// The log for a walk.
EMULATION_EXPORT const char* fusedrnn_emulation_nvrtc_walk(const char* program, int pass,
                                                           int arithmetic, int team, int capability,
                                                           uint64_t* bytes) {
  return compile_by_nvrtc(program, capability, bytes, [&](const Program& parsed) {
    return cuda::walk_source(
        parsed, {cuda::Pass(pass), cuda::Arithmetic(arithmetic), cuda::CudaTeam(team)});
  });
}
