// The ops of layers with int8 weights (quantized.h): schemas, argument checks and allocation, as
// layer_ops.cpp has them for the others. See fusedrnn/ops.py for what the arguments mean.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "cpu/backend.h"
#include "environment.h"
#include "layer/quantized.h"
#include "stack.h"
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

void check_values(const char* name, const Tensor& t) {
  const float* const value = static_cast<const float*>(data_of(name, t));
  for (int64_t i = 0; i < t.numel(); ++i)
    FUSEDRNN_CHECK(std::isfinite(value[i]), name, ": expected finite weights, got ", value[i],
                   " at position ", i);
}

Tensor quantize_weights(std::vector<Tensor> weights, int64_t cell, bool has_biases) {
  check_environment();
  FUSEDRNN_CHECK(cell >= 0 && cell < kCells, "cell: expected 0 to ", kCells - 1, ", got ", cell);
  Shape s;
  s.cell = static_cast<Cell>(cell);
  FUSEDRNN_CHECK(has_int8(s.cell), "cell: gru_reset_before has no int8 kernels");
  FUSEDRNN_CHECK(!weights.empty() && weights[0].dim() == 2,
                 "weights: expected w_ih of shape [gates * hidden_size, input_size] first");
  const Tensor& w_ih = weights[0];
  s.I = w_ih.size(1);
  check_width("input_size", s.I);
  check_width("hidden_size", w_ih.size(0) / gates_of(s.cell));
  check_weights(weights, has_biases, s);
  if (s.P) check_width("proj_size", s.P);
  std::vector<Tensor> given;
  for (const Tensor& w : weights) {
    const char* const name = weight_name(given.size(), weights.size(), has_biases);
    check_float(name, w);
    given.push_back(dense(name, w));
    check_values(name, given.back());
  }

  const QuantizedHeader header = header_of(s);
  Tensor packed = new_bytes(header.bytes, w_ih);
  char* const to = static_cast<char*>(packed.data_ptr());
  std::memset(to, 0, static_cast<std::size_t>(header.bytes));  // the gaps of alignment, too
  std::memcpy(to, &header, sizeof(header));
  cpu::write_quantized(s, weights_at(given, has_biases, s, 0), to);
  return packed;
}

// The sizes of the layer that begins `at` bytes into quantised weights, and its bytes; all of its
// header is checked.
int64_t read_layer(const PackedBytes& packed, int64_t at, Shape& s) {
  const int64_t there = packed.size - at;
  QuantizedHeader found;
  if (there >= static_cast<int64_t>(sizeof(found)))
    std::memcpy(&found, packed.data + at, sizeof(found));
  const auto width = [](int64_t n) { return n > 0 && n <= kMostQuantized; };
  bool whole = found.magic == QuantizedHeader::kMagic && found.cell >= 0 && found.cell < kCells &&
               has_int8(static_cast<Cell>(found.cell)) && width(found.I) && width(found.H) &&
               (found.P == 0 || width(found.P));
  if (whole) {
    s.cell = static_cast<Cell>(found.cell);
    s.I = found.I, s.H = found.H, s.P = found.P;
    const QuantizedHeader expected = header_of(s);
    whole = std::memcmp(&found, &expected, sizeof(found)) == 0 && found.bytes <= there &&
            (s.P == 0 || s.cell == Cell::lstm);
  }
  FUSEDRNN_CHECK(whole,
                 "packed: expected what fusedrnn::quantize_weights returned, got something else, ",
                 there, " bytes long");
  return found.bytes;
}

Tensor quantized_forward(const Tensor& input, const Tensor& packed, Tensor h,
                         std::optional<Tensor> c) {
  check_environment();
  check_float("input", input);
  const PackedBytes bytes = packed_bytes(packed, input);
  const auto read = [&](int64_t at, Shape& s) { return read_layer(bytes, at, s); };
  return forward_stack(input, bytes, h, c, read, [&](const StackedLayer& layer) {
    QuantizedProblem p;
    static_cast<Shape&>(p) = layer.shape;
    p.prepacked = true;
    p.packed = bytes.data + layer.at;
    p.input = static_cast<const float*>(layer.input);
    p.input_step = layer.input_step, p.input_row = layer.input_row;
    p.output = static_cast<float*>(layer.output);
    p.h = static_cast<float*>(layer.h), p.c = static_cast<float*>(layer.c);
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
  m.def("quantize_weights(Tensor[] weights, int cell, bool has_biases) -> Tensor");
  m.def("quantized_forward(Tensor input, Tensor packed, Tensor(a!) h, Tensor(b!)? c) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("quantize_weights", TORCH_BOX(&fusedrnn::quantize_weights));
  m.impl("quantized_forward", TORCH_BOX(&fusedrnn::quantized_forward));
}
