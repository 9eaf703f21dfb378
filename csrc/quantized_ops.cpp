// The ops of layers with int8 weights (quantized.h): schemas, argument checks and allocation, as
// ops.cpp has them for the others. See fusedrnn/ops.py for what the arguments mean.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "quantized.h"
#include "tensors.h"
#include "threads.h"

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
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == ScalarType::Float, name,
                  ": expected float32 on the CPU, which int8 kernels are for, got ",
                  toString(t.scalar_type()), " on ", device_of(t));
}

// All widths are bound, so that sums of products stay exact and no size overflows.
void check_width(const char* name, int64_t width) {
  STD_TORCH_CHECK(width > 0 && width <= kMostQuantized, name, ": expected 1 to ", kMostQuantized,
                  ", beyond which int8 products are not summed, got ", width);
}

Tensor check_weight(const char* name, const Tensor& t, const Sizes& sizes) {
  check_float(name, t);
  check_sizes(name, t, sizes);
  const Tensor values = dense(t);
  const float* const value = static_cast<const float*>(values.data_ptr());
  for (int64_t i = 0; i < values.numel(); ++i)
    STD_TORCH_CHECK(std::isfinite(value[i]), name, ": expected finite weights, got ", value[i],
                    " at position ", i);
  return values;
}

Tensor quantize_weights(std::vector<Tensor> weights, int64_t cell, bool has_biases) {
  STD_TORCH_CHECK(cell >= 0 && cell <= 3, "cell: expected 0 to 3, got ", cell);
  Shape s;
  s.cell = static_cast<Cell>(cell);
  const std::size_t plain = has_biases ? 4 : 2;
  const bool projected = weights.size() == plain + 1;
  STD_TORCH_CHECK(weights.size() == plain || projected, "weights: expected ", plain,
                  " tensors (and one more if projected), got ", weights.size());
  STD_TORCH_CHECK(!projected || s.cell == Cell::lstm, "weights: only an LSTM can be projected");
  const int64_t gates = gates_of(s.cell);
  const Tensor &w_ih = weights[0], &w_hh = weights[1];
  STD_TORCH_CHECK(w_ih.dim() == 2 && w_ih.size(0) % gates == 0, "w_ih: expected shape [", gates,
                  " * hidden_size, input_size], got ", to_string(sizes_of(w_ih)));
  STD_TORCH_CHECK(w_hh.dim() == 2, "w_hh: expected two dimensions, got shape ",
                  to_string(sizes_of(w_hh)));
  s.H = w_ih.size(0) / gates;
  s.I = w_ih.size(1);
  s.P = projected ? w_hh.size(1) : 0;
  check_width("input_size", s.I);
  check_width("hidden_size", s.H);
  if (projected) check_width("proj_size", s.P);

  std::vector<Tensor> dense_weights = {check_weight("w_ih", w_ih, {gates * s.H, s.I}),
                                       check_weight("w_hh", w_hh, {gates * s.H, s.R()})};
  Weights given;
  given.w_ih = dense_weights[0].data_ptr(), given.w_hh = dense_weights[1].data_ptr();
  if (has_biases) {
    dense_weights.push_back(check_weight("b_ih", weights[2], {gates * s.H}));
    dense_weights.push_back(check_weight("b_hh", weights[3], {gates * s.H}));
    given.b_ih = dense_weights[2].data_ptr(), given.b_hh = dense_weights[3].data_ptr();
  }
  if (projected) {
    dense_weights.push_back(check_weight("w_hr", weights[plain], {s.P, s.H}));
    given.w_hr = dense_weights.back().data_ptr();
  }

  const QuantizedHeader header = header_of(s);
  Tensor packed = new_bytes(header.bytes, w_ih);
  char* const to = static_cast<char*>(packed.data_ptr());
  std::memset(to, 0, static_cast<std::size_t>(header.bytes));  // the gaps of alignment, too
  std::memcpy(to, &header, sizeof(header));
  write_quantized(s, given, to);
  return packed;
}

// The sizes in the header of quantised weights, all of which is checked.
Shape read_packed(const Tensor& packed) {
  STD_TORCH_CHECK(packed.is_cpu() && packed.scalar_type() == ScalarType::Byte &&
                      packed.dim() == 1 && packed.is_contiguous() &&
                      reinterpret_cast<std::uintptr_t>(packed.data_ptr()) % 64 == 0,
                  "packed: expected contiguous, 64-byte aligned uint8 of shape [bytes] on the CPU, "
                  "got ",
                  toString(packed.scalar_type()), " of shape ", to_string(sizes_of(packed)), " on ",
                  device_of(packed));
  QuantizedHeader found;
  if (packed.numel() >= static_cast<int64_t>(sizeof(found)))
    std::memcpy(&found, packed.data_ptr(), sizeof(found));
  const auto width = [](int64_t n) { return n > 0 && n <= kMostQuantized; };
  Shape s;
  bool whole = found.magic == QuantizedHeader::kMagic && found.cell >= 0 && found.cell <= 3 &&
               width(found.I) && width(found.H) && (found.P == 0 || width(found.P));
  if (whole) {
    s.cell = static_cast<Cell>(found.cell);
    s.I = found.I, s.H = found.H, s.P = found.P;
    const QuantizedHeader expected = header_of(s);
    whole = std::memcmp(&found, &expected, sizeof(found)) == 0 && found.bytes == packed.numel() &&
            (s.P == 0 || s.cell == Cell::lstm);
  }
  STD_TORCH_CHECK(whole,
                  "packed: expected what fusedrnn::quantize_weights returned, got something else, ",
                  packed.numel(), " bytes long");
  return s;
}

std::tuple<Tensor, Tensor, Tensor> quantized_layer_forward(const Tensor& input,
                                                           std::optional<Tensor> hx,
                                                           std::optional<Tensor> cx,
                                                           const Tensor& packed) {
  QuantizedProblem p;
  static_cast<Shape&>(p) = read_packed(packed);
  check_float("input", input);
  STD_TORCH_CHECK(input.dim() == 3 && input.size(2) == p.I && input.size(0) > 0,
                  "input: expected shape [T, B, ", p.I, "] with at least one step, got ",
                  to_string(sizes_of(input)));
  p.T = input.size(0), p.B = input.size(1);
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 1024 / (4 * kMostQuantized);
  STD_TORCH_CHECK(p.B <= kMost / p.T, "input: too large, got shape ", to_string(sizes_of(input)));
  p.rows = p.T * p.B;
  const bool lstm = p.cell == Cell::lstm;
  STD_TORCH_CHECK(lstm || !cx, "cx: only an LSTM has a cell state");
  STD_TORCH_CHECK(!lstm || hx.has_value() == cx.has_value(), "hx, cx: expected both or neither");
  const auto state = [&](const char* name, const std::optional<Tensor>& t, int64_t width) {
    if (!t) return std::optional<Tensor>();
    check_float(name, *t);
    check_sizes(name, *t, {1, p.B, width});
    return std::optional<Tensor>(dense(*t));
  };
  const std::optional<Tensor> h = state("hx", hx, p.R()), c = state("cx", cx, p.H);

  Tensor output = new_pooled("output", {p.T, p.B, p.R()}, input);
  Tensor hn = new_tensor({1, p.B, p.R()}, input);
  Tensor cn = new_tensor({1, p.B, lstm ? p.H : 0}, input);
  if (p.rows == 0) return {output, hn, cn};
  const Tensor x = input.stride(2) == 1 || p.I == 1 ? input : dense(input);
  p.packed = static_cast<const char*>(packed.data_ptr());
  p.input = static_cast<const float*>(x.data_ptr());
  p.input_step = x.stride(0), p.input_row = x.stride(1);
  if (h) p.hx = static_cast<const float*>(h->data_ptr());
  if (c) p.cx = static_cast<const float*>(c->data_ptr());
  p.output = static_cast<float*>(output.data_ptr());
  p.hn = static_cast<float*>(hn.data_ptr());
  if (lstm) p.cn = static_cast<float*>(cn.data_ptr());
  Context context;
  context.threads = thread_count();
  context.parallel_for = parallel_for;
  const char* const error = quantized_forward(p, context);
  STD_TORCH_CHECK(!error, error);
  return {output, hn, cn};
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY_FRAGMENT(fusedrnn, m) {
  m.def("quantize_weights(Tensor[] weights, int cell, bool has_biases) -> Tensor");
  m.def(
      "quantized_layer_forward(Tensor input, Tensor? hx, Tensor? cx, Tensor packed) "
      "-> (Tensor output, Tensor hn, Tensor cn)");
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("quantize_weights", TORCH_BOX(&fusedrnn::quantize_weights));
  m.impl("quantized_layer_forward", TORCH_BOX(&fusedrnn::quantized_layer_forward));
}
