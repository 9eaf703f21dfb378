// All that is compiled for an instruction set, as one table. setup.py says which dtypes it has
// (FUSEDRNN_TABLE_<dtype>), and whether it has kernels for int8 weights.
#include "cpu/kernels.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {
namespace {

template <Dtype dtype>
constexpr void add(Kernels& table) {
  constexpr int at = static_cast<int>(dtype);
  table.forward[at] = forward<dtype>;
  table.backward[at] = backward<dtype>;
  table.make_panels[at] = make_panels<dtype>;
}

constexpr Kernels all() {
  Kernels table = {};
#if FUSEDRNN_TABLE_f64
  add<Dtype::f64>(table);
#endif
#if FUSEDRNN_TABLE_f32
  add<Dtype::f32>(table);
#endif
#if FUSEDRNN_TABLE_bf16
  add<Dtype::bf16>(table);
#endif
#if FUSEDRNN_TABLE_f16
  add<Dtype::f16>(table);
#endif
#if FUSEDRNN_TABLE_int8
  table.forward_quantized = forward_quantized;
  table.quantize_weights = quantize_weights;
#endif
  return table;
}

}  // namespace

const Kernels& table() {
  static constexpr Kernels found = all();
  return found;
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
