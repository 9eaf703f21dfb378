// A layer with int8 weights: what the op layer and the CPU backend know about it.
//
// Every row of a weight matrix (one gate of one unit) has a scale. So has every row of activations
// (x_t, h_{t-1} or the operand of a projection, for one sequence). Both are signed, symmetric int8:
//
//   scale = largest / 127,  q = round(value * (127 / largest)),  largest = max |value|, or 2^-100
//
// Products are summed in int32, which is exact, and  q_x . q_w * (scale_x * scale_w)  continues in
// float32. The pointwise work, c and h are float32 throughout.
//
// fusedrnn::quantize_weights makes one buffer from a layer's weights, the quantized buffer. It is
// the same on every processor:
//
//   [header][w_ih][w_hh][w_hr][biases]            64-byte aligned
//
//   matrix   panels   int8   [block][k / 4][slot][16 units][4 of k]    a block is 16 units
//            starts   int32  [block][slot][16]    -128 * the sum of the row's values, see int8.h
//            scales   float  [block][slot][16]
//   biases   bias [slot][Hp], hidden_bias [Hp]    b_ih + b_hh, except for the GRU's candidate: its
//                                                 b_hh is hidden_bias, as the reset gate scales it
//
// Slots are the gates, in the order of the cell's inputs for w_ih and of its products for w_hh;
// w_hr has one slot. The whole header is compared with what a call needs and with the size of the
// tensor, so that nothing else is mistaken for quantised weights.
#pragma once

#include "backend.h"

namespace fusedrnn {

constexpr int64_t kQuad = 4;               // values of k that one lane multiplies at once
constexpr int64_t kMostQuantized = 65536;  // the depth up to which sums are sure to fit an int32

struct QuantizedHeader {
  static constexpr int64_t kMagic = 0x31746e6964657375;  // "usedint1"

  int64_t magic = 0;
  int64_t bytes = 0;  // with the header
  int64_t I = 0, H = 0, P = 0;
  int64_t cell = 0;
  int64_t reserved[2] = {0, 0};
};
static_assert(sizeof(QuantizedHeader) == 64, "keeps the panels aligned");

// Where one matrix is in the buffer, in bytes.
struct QuantizedPlace {
  int64_t slots = 0, blocks = 0, quads = 0;
  int64_t panels = 0, starts = 0, scales = 0;
};

// Where everything is in the buffer.
struct QuantizedLayout {
  QuantizedPlace w_ih, w_hh, w_hr;
  int64_t bias = 0, hidden_bias = 0, bytes = sizeof(QuantizedHeader);

  explicit QuantizedLayout(const Shape& s) {
    const int64_t gates = s.facts().inputs;
    w_ih = matrix(gates, s.H, s.I);
    w_hh = matrix(gates, s.H, s.R());
    if (s.P) w_hr = matrix(1, s.P, s.H);
    bias = take(gates * s.Hp() * int64_t{sizeof(float)});
    hidden_bias = take(s.Hp() * int64_t{sizeof(float)});
  }

 private:
  int64_t take(int64_t size) {
    const int64_t at = bytes;
    bytes += round_up(size, 64);
    return at;
  }
  QuantizedPlace matrix(int64_t slots, int64_t units, int64_t k) {
    QuantizedPlace place;
    place.slots = slots, place.blocks = div_up(units, kHiddenPadding),
    place.quads = div_up(k, kQuad);
    const int64_t rows = place.blocks * slots * kHiddenPadding;
    place.panels = take(rows * place.quads * kQuad);
    place.starts = take(rows * int64_t{sizeof(int32_t)});
    place.scales = take(rows * int64_t{sizeof(float)});
    return place;
  }
};

// One call of one layer, in float32. The arrays are as in Problem.
struct QuantizedProblem : Shape {
  const char* buffer = nullptr;  // the quantized buffer, from its header on
  const float* input = nullptr;
  int64_t input_step = 0, input_row = 0;
  float* output = nullptr;
  float* states[kMaxStates] = {};  // those before the call, replaced by those after it
};

}  // namespace fusedrnn
