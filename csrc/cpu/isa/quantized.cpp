// Forward with int8 weights.
#include "../dispatch.h"
#include "../kernels.h"
#include "../quantized.h"

FUSEDRNN_DECLARE_QUANTIZED_KERNELS(FUSEDRNN_ISA)

int64_t fusedrnn::FUSEDRNN_ISA::forward_quantized(const QuantizedProblem& p, const Plan& plan,
                                                  ParallelFor parallel_for, void* scratch) {
  return with_cell(
      p.cell, [&](auto cell) { return quantized<decltype(cell)>(p, plan, parallel_for, scratch); });
}
