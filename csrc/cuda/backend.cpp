// The CUDA backend: the table that the library exports, with failures of any kind as a text.
#include "layer/backend.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <exception>
#include <string>

#include "device.h"
#include "layer.h"
#include "program_kernels.h"
#include "program_library.h"

namespace fusedrnn::cuda {
namespace {

template <class F>
const char* report(const F& run) {
  thread_local std::string error;
  try {
    run();
    return nullptr;
  } catch (const std::exception& exception) {
    error = exception.what();
    return error.c_str();
  }
}

// Calls run(E()) for the storage type E of a dtype.
template <class F>
void with_storage(Dtype dtype, const F& run) {
  switch (dtype) {
    case Dtype::f64: return run(double());
    case Dtype::f32: return run(float());
    case Dtype::bf16: return run(__nv_bfloat16());
    case Dtype::f16: return run(__half());
  }
}

const char* forward(const Problem& problem, const Context& context) {
  return report([&] {
    with_storage(problem.dtype,
                 [&](auto type) { layer_forward<decltype(type)>(problem, context); });
  });
}

const char* backward(const BackwardProblem& problem, const Context& context) {
  return report([&] {
    with_storage(problem.dtype,
                 [&](auto type) { layer_backward<decltype(type)>(problem, context); });
  });
}

}  // namespace
}  // namespace fusedrnn::cuda

#define FUSEDRNN_EXPORT extern "C" __attribute__((visibility("default")))

// Why no cell that is a program can run on this backend, and what to do about it; null if they can.
FUSEDRNN_EXPORT const char* fusedrnn_cuda_without_programs() {
  static const std::string why = fusedrnn::cuda::why_no_kernels();
  return why.empty() ? nullptr : why.c_str();
}

// Makes the kernels of a program ahead of the calls that need them, for the current device. Null,
// or why it could not: a text that stays until the calling thread's next call.
FUSEDRNN_EXPORT const char* fusedrnn_cuda_make_program(const char* text, int dtype) {
  using namespace fusedrnn::cuda;
  return report([&] {
    const auto program = fusedrnn::Program::parse(text);
    program_kernels(*program, static_cast<fusedrnn::Dtype>(dtype), nullptr);
  });
}

FUSEDRNN_EXPORT void fusedrnn_cuda_keep_images_by(fusedrnn::cuda::KeepImages keep) {
  fusedrnn::cuda::keep_images_by(keep);
}

// What the current device is, as plans are made for it: its compute capability times ten, its
// multiprocessors, the bytes of shared memory that a block may ask for, the size of the largest
// cluster n, and for each size 0..n how many clusters are resident at once when each block takes a
// whole multiprocessor. Null, or why it could not be asked, as above.
FUSEDRNN_EXPORT const char* fusedrnn_cuda_device(int* facts) {
  using namespace fusedrnn::cuda;
  return report([&] {
    const CudaDevice device = current_device();
    for (int fact : {device.capability, device.multiprocessors, device.shared_bytes, kMostBlocks})
      *facts++ = fact;
    for (int clusters : device.clusters) *facts++ = clusters;
  });
}

FUSEDRNN_EXPORT const fusedrnn::Backend* fusedrnn_cuda_backend() {
  static const fusedrnn::Backend backend = {fusedrnn::cuda::forward, fusedrnn::cuda::backward,
                                            true};
  return &backend;
}
