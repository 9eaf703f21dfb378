// The project's backend with every byte that it may write set to 0xff first: results, the reserve
// and scratch begin as NaN, so that a number that depends on memory which no kernel wrote shows.
#include <cstring>

#include "layer/backend.h"

extern "C" const fusedrnn::Backend* fusedrnn_cuda_backend();

namespace fusedrnn::cuda {
namespace {

void poison(void* data, int64_t count, Dtype dtype) {
  if (data) memset(data, 0xff, static_cast<size_t>(count * size_of(dtype)));
}

struct Lender {  // of scratch, as torch lent it
  const Context& torch;
};

Context poisoned(Lender& lender) {
  Context context = lender.torch;
  context.owner = &lender;
  context.allocate = [](int64_t bytes, void* owner) -> void* {
    const Context& torch = static_cast<Lender*>(owner)->torch;
    void* const data = torch.allocate(bytes, torch.owner);
    if (data) memset(data, 0xff, static_cast<size_t>(bytes));
    return data;
  };
  return context;
}

const char* forward(const Problem& p, const Context& context) {
  const int64_t D = p.directions;
  poison(p.output, p.rows * D * p.R(), p.dtype);
  for (int i = 0; i < p.facts().states; ++i) poison(p.hn[i], D * p.B * p.width(i), p.dtype);
  poison(p.reserve, D * p.rows * p.facts().saved * p.Hp(), p.dtype);
  Lender lender{context};
  return fusedrnn_cuda_backend()->forward(p, poisoned(lender));
}

const char* backward(const BackwardProblem& p, const Context& context) {
  const int64_t D = p.directions, inputs = p.input_rows(), products = p.hidden_rows();
  poison(p.grad_input, p.rows * p.I, p.dtype);
  for (int i = 0; i < p.facts().states; ++i) poison(p.grad_hx[i], D * p.B * p.width(i), p.dtype);
  for (int d = 0; d < p.directions; ++d) {
    const WeightGradients& weights = p.grad_weights[d];
    poison(weights.w_ih, inputs * p.I, p.dtype);
    poison(weights.w_hh, products * p.R(), p.dtype);
    poison(weights.b_ih, inputs, p.dtype);
    poison(weights.b_hh, products, p.dtype);
    poison(weights.w_hr, p.P * p.H, p.dtype);
    poison(weights.w_unit, p.facts().unit_weights * p.H, p.dtype);
  }
  Lender lender{context};
  return fusedrnn_cuda_backend()->backward(p, poisoned(lender));
}

}  // namespace
}  // namespace fusedrnn::cuda

extern "C" __attribute__((visibility("default"))) const fusedrnn::Backend*
fusedrnn_emulated_backend() {
  static const fusedrnn::Backend backend = {fusedrnn::cuda::forward, fusedrnn::cuda::backward,
                                            fusedrnn_cuda_backend()->even_rows};
  return &backend;
}
