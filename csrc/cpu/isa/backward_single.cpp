// Backward in fp32.
#include "../backward.h"
#include "../dispatch.h"
#include "../kernels.h"

FUSEDRNN_DECLARE_KERNELS(FUSEDRNN_ISA)

int64_t fusedrnn::FUSEDRNN_ISA::backward_single(const BackwardProblem& p, const Plan& plan,
                                                ParallelFor parallel_for, void* scratch) {
  return with_cell(p.cell, [&](auto cell) {
    return backward<float, float, decltype(cell)>(p, plan, parallel_for, scratch);
  });
}
