// Backward of bf16 and fp16 tensors, computed in fp32.
#include "../backward.h"
#include "../dispatch.h"
#include "../kernels.h"

FUSEDRNN_DECLARE_KERNELS(FUSEDRNN_ISA)

int64_t fusedrnn::FUSEDRNN_ISA::backward_half(const BackwardProblem& p, const Plan& plan,
                                              ParallelFor parallel_for, void* scratch) {
  return with_cell(p.cell, [&](auto cell) {
    using C = decltype(cell);
    return p.dtype == Dtype::bf16 ? backward<BFloat16, float, C>(p, plan, parallel_for, scratch)
                                  : backward<Half, float, C>(p, plan, parallel_for, scratch);
  });
}
