// The CUDA backend: the table that the library exports, with failures of any kind as a text.
#include "../backend.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <exception>
#include <string>

#include "../plan_override.h"
#include "stepwise.h"

namespace fusedrnn {
namespace {

template <class F>
const char* report(const F& run) {
  thread_local std::string error;
  try {
    error = plan_override().error();
    if (!error.empty()) return error.c_str();
    run();
    return nullptr;
  } catch (const std::exception& exception) {
    error = exception.what();
    return error.c_str();
  }
}

const char* forward(const Problem& problem, const Context& context) {
  return report([&] {
    switch (problem.dtype) {
      case Dtype::f64: return stepwise_forward<double>(problem, context);
      case Dtype::f32: return stepwise_forward<float>(problem, context);
      case Dtype::bf16: return stepwise_forward<__nv_bfloat16>(problem, context);
      case Dtype::f16: return stepwise_forward<__half>(problem, context);
    }
  });
}

const char* backward(const BackwardProblem& problem, const Context& context) {
  return report([&] {
    switch (problem.dtype) {
      case Dtype::f64: return stepwise_backward<double>(problem, context);
      case Dtype::f32: return stepwise_backward<float>(problem, context);
      case Dtype::bf16: return stepwise_backward<__nv_bfloat16>(problem, context);
      case Dtype::f16: return stepwise_backward<__half>(problem, context);
    }
  });
}

}  // namespace
}  // namespace fusedrnn

extern "C" __attribute__((visibility("default"))) const fusedrnn::Backend* fusedrnn_cuda_backend() {
  static const fusedrnn::Backend backend = {fusedrnn::forward, fusedrnn::backward, true};
  return &backend;
}
