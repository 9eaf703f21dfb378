// Forward of bf16 and fp16 tensors, computed in fp32.
#include "../dispatch.h"
#include "../forward.h"
#include "../kernels.h"

FUSEDRNN_DECLARE_KERNELS(FUSEDRNN_ISA)

int64_t fusedrnn::FUSEDRNN_ISA::forward_half(const Problem& p, const Plan& plan,
                                             ParallelFor parallel_for, void* scratch) {
  return with_cell(p.cell, [&](auto cell) {
    using C = decltype(cell);
    return p.dtype == Dtype::bf16 ? forward<BFloat16, float, C>(p, plan, parallel_for, scratch)
                                  : forward<Half, float, C>(p, plan, parallel_for, scratch);
  });
}

int64_t fusedrnn::FUSEDRNN_ISA::pack_half(const Problem& p, void* panels) {
  return with_cell(p.cell, [&](auto cell) {
    using C = decltype(cell);
    return p.dtype == Dtype::bf16 ? pack<BFloat16, float, C>(p, panels)
                                  : pack<Half, float, C>(p, panels);
  });
}
