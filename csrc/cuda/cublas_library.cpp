// torch brings a cuBLAS of its own, and our handle comes from there: the same library has to serve
// the calls. It is loaded by the time a CUDA tensor exists, and so may be other versions.
//
// torch's is the one that libtorch_cuda was linked against. A symbol that is looked up by the
// handle of libtorch_cuda is found among its own dependencies, whatever else the process has
// loaded, and in whatever order. Only if that finds nothing (a torch that loads cuBLAS later, or
// has other names) are the versions tried by name: the one of the CUDA that this library was built
// with, which is torch's, and then the only one that there is. Between two others there is nothing
// to choose by, and a library must not be given a handle that it did not make.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <string>

#include "blas.h"

namespace fusedrnn::cuda {
namespace {

constexpr int kFirstVersion = 11, kLastVersion = 15;

void* loaded(const std::string& name) { return dlopen(name.c_str(), RTLD_NOW | RTLD_NOLOAD); }
void* loaded(int version) { return loaded("libcublas.so." + std::to_string(version)); }

void* only_one() {
  void* only = nullptr;
  for (int version = kFirstVersion; version <= kLastVersion; ++version) {
    void* const library = loaded(version);
    if (library && only) return nullptr;
    if (library) only = library;
  }
  return only;
}

template <class F>
bool find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

bool find_all(void* library, Cublas& cublas) {
  return library && find(library, "cublasGemmEx", cublas.gemm) &&
         find(library, "cublasGemmStridedBatchedEx", cublas.gemm_strided_batched) &&
         find(library, "cublasGetMathMode", cublas.get_math_mode) &&
         find(library, "cublasSetMathMode", cublas.set_math_mode);
}

bool load(Cublas& cublas) {
  return find_all(loaded("libtorch_cuda.so"), cublas) ||
         find_all(loaded(CUDART_VERSION / 1000), cublas) || find_all(only_one(), cublas);
}

}  // namespace

const Cublas* find_cublas() {
  static Cublas cublas;
  static const bool is_there = load(cublas);
  return is_there ? &cublas : nullptr;
}

}  // namespace fusedrnn::cuda
