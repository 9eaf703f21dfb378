// Forward in fp32.
#include "../dispatch.h"
#include "../forward.h"
#include "../kernels.h"

FUSEDRNN_DECLARE_KERNELS(FUSEDRNN_ISA)

int64_t fusedrnn::FUSEDRNN_ISA::forward_single(const Problem& p, const Plan& plan,
                                               ParallelFor parallel_for, void* scratch) {
  return with_cell(p.cell, [&](auto cell) {
    return forward<float, float, decltype(cell)>(p, plan, parallel_for, scratch);
  });
}

int64_t fusedrnn::FUSEDRNN_ISA::pack_single(const Problem& p, void* panels) {
  return with_cell(p.cell,
                   [&](auto cell) { return pack<float, float, decltype(cell)>(p, panels); });
}
