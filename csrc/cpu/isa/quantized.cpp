// Forward with int8 weights, and quantising weights.
#include "cpu/quantized.h"

#include "cpu/kernels.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {
namespace {

// Calls call(C()) for the struct of a cell. The ops have checked that it has int8 kernels.
template <class F>
void with_int8_cell(Cell number, const F& call) {
  with_cell(number, [&](auto cell) {
    if constexpr (has_int8<decltype(cell)>) call(cell);
  });
}

}  // namespace

int64_t forward_quantized(const QuantizedProblem& p, const Plan& plan, ParallelFor parallel_for,
                          void* scratch) {
  int64_t bytes = 0;
  with_int8_cell(p.cell, [&](auto cell) {
    bytes = quantized<decltype(cell)>(p, plan, parallel_for, scratch);
  });
  return bytes;
}

void quantize_weights(const Shape& s, const Weights& w, char* buffer) {
  with_int8_cell(s.cell, [&](auto cell) { quantize<decltype(cell)>(s, w, buffer); });
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
