// Kernels compiled by NVRTC, loaded by the CUDA runtime. A library that is loaded so belongs to no
// device: its kernels run on all that the code is for.
#include "program_library.h"

#include <cuda_runtime_api.h>

#include <sstream>
#include <stdexcept>

#include "nvrtc/nvrtc.h"

namespace fusedrnn::cuda {

#if CUDART_VERSION >= 12080

namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // not left for whoever asks next
  throw std::runtime_error(std::string("CUDA: ") + what + " failed: " + cudaGetErrorString(error));
}

}  // namespace

// The symbols of the kernels, one to a line, an empty line, and the code.
std::string compile_image(const KernelSource& source, int capability) {
  const Compiled compiled = compile_cuda(source.text, source.names, capability);
  std::string image;
  for (const std::string& symbol : compiled.symbols) image += symbol + "\n";
  return image + "\n" + compiled.image;
}

std::string compiler_of_images(int capability) { return nvrtc_and_headers(capability); }

std::vector<const void*> load_image(const std::string& image) {
  const std::size_t end = image.find("\n\n");
  if (end == std::string::npos) throw std::runtime_error("CUDA: an image without symbols");
  const std::string code = image.substr(end + 2);  // which has an alignment of its own
  cudaLibrary_t library = nullptr;
  check(cudaLibraryLoadData(&library, code.c_str(), nullptr, nullptr, 0, nullptr, nullptr, 0),
        "loading kernels");
  std::vector<const void*> handles;
  std::istringstream symbols(image.substr(0, end));
  for (std::string symbol; std::getline(symbols, symbol);) {
    cudaKernel_t kernel = nullptr;
    check(cudaLibraryGetKernel(&kernel, library, symbol.c_str()), "finding a kernel");
    handles.push_back(kernel);
  }
  return handles;
}

std::string why_no_kernels() { return why_no_nvrtc(); }

#else

std::string compile_image(const KernelSource&, int) { throw std::runtime_error(why_no_kernels()); }

std::string compiler_of_images(int) { return {}; }

std::vector<const void*> load_image(const std::string&) {
  throw std::runtime_error(why_no_kernels());
}

std::string why_no_kernels() {
  return "this build is of CUDA " + std::to_string(CUDART_VERSION / 1000) + "." +
         std::to_string(CUDART_VERSION % 1000 / 10) +
         ", whose runtime loads no kernels: build with CUDA 12.8 or later";
}

#endif

}  // namespace fusedrnn::cuda
