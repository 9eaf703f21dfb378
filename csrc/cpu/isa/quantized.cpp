// Forward with int8 weights, and their making.
#include "cpu/quantized.h"
#include "cpu/dispatch.h"
#include "cpu/kernels.h"

int64_t fusedrnn::cpu::FUSEDRNN_ISA::forward_quantized(const QuantizedProblem& p, const Plan& plan,
                                                       ParallelFor parallel_for, void* scratch) {
  return with_undivided_cell(
      p.cell, [&](auto cell) { return quantized<decltype(cell)>(p, plan, parallel_for, scratch); });
}

void fusedrnn::cpu::FUSEDRNN_ISA::quantize_weights(const Shape& s, const Weights& w, char* packed) {
  with_undivided_cell(s.cell, [&](auto cell) { quantize<decltype(cell)>(s, w, packed); });
}
