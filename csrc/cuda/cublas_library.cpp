// torch brings a cuBLAS of its own, and our handle comes from there: the same library has to serve
// the calls. It is loaded by the time a CUDA tensor exists; only its name depends on the version.
#include <dlfcn.h>

#include <initializer_list>

#include "blas.h"

namespace fusedrnn::cuda {
namespace {

template <class F>
bool find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

bool load(Cublas& cublas) {
  for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11"}) {
    void* const library = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
    if (library && find(library, "cublasGemmEx", cublas.gemm) &&
        find(library, "cublasGemmStridedBatchedEx", cublas.gemm_strided_batched) &&
        find(library, "cublasGetMathMode", cublas.get_math_mode) &&
        find(library, "cublasSetMathMode", cublas.set_math_mode))
      return true;
  }
  return false;
}

}  // namespace

const Cublas* find_cublas() {
  static Cublas cublas;
  static const bool loaded = load(cublas);
  return loaded ? &cublas : nullptr;
}

}  // namespace fusedrnn::cuda
