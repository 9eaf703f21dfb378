// The ops of layers with int8 weights (quantized.h): schemas, argument checks and allocation, as
// layer_ops.cpp has them for the others. See fusedrnn/_engine/ops.py for what the arguments mean.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "cell_name.h"
#include "cells.h"
#include "cpu/backend.h"
#include "environment.h"
#include "layer/quantized.h"
#include "stack.h"
#include "states.h"
#include "tensors.h"
#include "threads.h"
#include "weights.h"

namespace fusedrnn {
namespace {

QuantizedHeader header_of(const Shape& s) {
  QuantizedHeader header;
  header.magic = QuantizedHeader::kMagic;
  header.bytes = QuantizedLayout(s).bytes;
  header.I = s.I, header.H = s.H, header.P = s.P;
  header.cell = static_cast<int64_t>(s.cell);
  return header;
}

void check_float(const char* name, const Tensor& t) {
  FUSEDRNN_CHECK(t.is_cpu() && t.scalar_type() == ScalarType::Float, name,
                 ": expected float32 on the CPU, which int8 kernels are for, got ", dtype_name(t),
                 " on ", device_of(t));
}

// All widths are bound, so that sums of products stay exact and no size overflows.
void check_width(const char* name, int64_t width) {
  FUSEDRNN_CHECK(width > 0 && width <= kMostQuantized, name, ": expected 1 to ", kMostQuantized,
                 ", beyond which int8 products are not summed, got ", width);
}

void check_values(const char* name, const float* value, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    FUSEDRNN_CHECK(std::isfinite(value[i]), name, ": expected finite weights, got ", value[i],
                   " at position ", i);
}

Tensor quantize_weights(const std::vector<Tensor>& weights, const CellName& cell, bool biases,
                        bool projected) {
  check_environment();
  Shape s;
  set_cell(s, cell.text());
  FUSEDRNN_CHECK(s.facts().has_int8, "cell: ", s.facts().names.cell, " has no int8 kernels");
  FUSEDRNN_CHECK(!weights.empty() && weights[0].dim() == 2,
                 "weights: expected w_ih of shape [gates * hidden_size, input_size] first");
  s.I = weights[0].size(1);
  check_width("input_size", s.I);
  check_width("hidden_size", weights[0].size(0) / s.facts().inputs);
  const Roles roles = roles_of(s.facts(), biases, projected);
  check_weights(weights, roles, projected, s);
  if (s.P) check_width("proj_size", s.P);
  for_each_weight(roles, s.directions,
                  [&](Role role, std::size_t i, int) { check_float(name_of(role), weights[i]); });
  Weights placed;
  std::vector<Tensor> copies;
  place_weights(weights, roles, s.directions, &placed, copies);
  for_each_weight(roles, s.directions, [&](Role role, std::size_t i, int) {
    check_values(name_of(role), static_cast<const float*>(weight_of(placed, role)),
                 weights[i].numel());
  });

  const QuantizedHeader header = header_of(s);
  Tensor quantized = new_bytes(header.bytes, weights[0]);
  char* const to = static_cast<char*>(quantized.data_ptr());
  std::memset(to, 0, static_cast<std::size_t>(header.bytes));  // the gaps of alignment, too
  std::memcpy(to, &header, sizeof(header));
  cpu::write_quantized(s, placed, to);
  return quantized;
}

// The sizes of the layer that begins `at` bytes into quantised weights, and its bytes; all of its
// header is checked.
int64_t read_layer(const ReadyBytes& quantized, int64_t at, Shape& s) {
  const int64_t there = quantized.size - at;
  QuantizedHeader found;
  if (there >= static_cast<int64_t>(sizeof(found)))
    std::memcpy(&found, quantized.data + at, sizeof(found));
  const auto width = [](int64_t n) { return n > 0 && n <= kMostQuantized; };
  bool whole = found.magic == QuantizedHeader::kMagic && found.cell >= 0 && found.cell < kCells &&
               facts_of(static_cast<Cell>(found.cell)).has_int8 && width(found.I) &&
               width(found.H) && (found.P == 0 || width(found.P));
  if (whole) {
    s.cell = static_cast<Cell>(found.cell);
    s.I = found.I, s.H = found.H, s.P = found.P;
    const QuantizedHeader expected = header_of(s);
    whole = std::memcmp(&found, &expected, sizeof(found)) == 0 && found.bytes <= there &&
            (s.P == 0 || s.facts().projects);
  }
  FUSEDRNN_CHECK(
      whole, "quantized: expected what fusedrnn::quantize_weights returned, got something else, ",
      there, " bytes long");
  return found.bytes;
}

Tensor quantized_forward(const Tensor& input, const Tensor& quantized,
                         const std::vector<Tensor>& hx) {
  check_environment();
  check_float("input", input);
  const ReadyBytes bytes = ready_bytes("quantized", quantized, input);
  const auto read = [&](int64_t at, Shape& s) { return read_layer(bytes, at, s); };
  return forward_stack(input, "quantized", bytes, hx, read, [&](const StackedLayer& layer) {
    QuantizedProblem p;
    static_cast<Shape&>(p) = layer.shape;
    p.has_panels = true;
    p.buffer = bytes.data + layer.at;
    p.input = static_cast<const float*>(layer.input);
    p.input_step = layer.input_step, p.input_row = layer.input_row;
    p.output = static_cast<float*>(layer.output);
    for (int i = 0; i < kMaxStates; ++i) p.states[i] = static_cast<float*>(layer.states[i]);
    Context context;
    context.threads = thread_count();
    context.parallel_for = parallel_for;
    const char* const failure = cpu::forward_quantized(p, context);
    FUSEDRNN_CHECK(!failure, failure);
  });
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY_FRAGMENT(fusedrnn, m) {
  m.def("quantize_weights(Tensor[] weights, str cell, bool biases, bool projected) -> Tensor");
  m.def("quantized_forward(Tensor input, Tensor quantized, Tensor(a!)[] hx) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("quantize_weights", TORCH_BOX(&fusedrnn::quantize_weights));
  m.impl("quantized_forward", TORCH_BOX(&fusedrnn::quantized_forward));
}
