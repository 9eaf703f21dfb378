// The CUDA backend: the table that the library exports, with failures of any kind as a text.
#include "layer/backend.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <exception>
#include <stdexcept>
#include <string>

#include "layer.h"

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

void refuse_unknown(const Problem& problem) {
  if (problem.modifiers.step_inputs)
    throw std::runtime_error("step_inputs: the CUDA kernels take none yet");
  if (problem.program)
    throw std::runtime_error("cell: the CUDA kernels run no cells that are programs yet");
}

const char* forward(const Problem& problem, const Context& context) {
  return report([&] {
    refuse_unknown(problem);
    with_storage(problem.dtype,
                 [&](auto type) { layer_forward<decltype(type)>(problem, context); });
  });
}

const char* backward(const BackwardProblem& problem, const Context& context) {
  return report([&] {
    refuse_unknown(problem);
    with_storage(problem.dtype,
                 [&](auto type) { layer_backward<decltype(type)>(problem, context); });
  });
}

}  // namespace
}  // namespace fusedrnn::cuda

extern "C" __attribute__((visibility("default"))) const fusedrnn::Backend* fusedrnn_cuda_backend() {
  static const fusedrnn::Backend backend = {fusedrnn::cuda::forward, fusedrnn::cuda::backward,
                                            true};
  return &backend;
}
