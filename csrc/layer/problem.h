// What crosses from the op layer to a backend: one call of one layer, with one or both directions,
// as plain sizes, strides and pointers. No torch and no CUDA in here: kernels know nothing else
// about a layer.
//
//   input    [T][B][I], strides input_step and input_row (elements), innermost contiguous
//   output   [rows][D*R], contiguous; rows counts the (t, b) pairs that are alive
//   reserve  [D][rows][saved][Hp], in the storage type; what forward keeps for backward
//   hx, hn   for each state: h has [D][B][R], the others have [D][B][H]
//
// R = P if projected, else H;  Hp = H rounded up to 16.
//
// Packed sequences are those of torch: step t has batch(t) rows, batch(t) never grows with t, and
// row offsets[t] + b of input and output is sequence b at step t.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cells/list.h"

namespace fusedrnn {

enum class Dtype : int { f64, f32, bf16, f16 };

constexpr int64_t kHiddenPadding = 16;  // Hp is a multiple of this, whatever the vector width
constexpr int kMaxDirections = 2;

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr int64_t div_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

constexpr int64_t size_of(Dtype dtype) {
  return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
}

// Only the sizes, which are all that a plan depends on.
struct Shape {
  Cell cell{};
  Dtype dtype = Dtype::f32;
  int64_t T = 0, B = 0, I = 0, H = 0, P = 0;  // P = 0: not projected
  int64_t rows = 0;                           // alive (t, b) pairs, T*B unless packed
  int directions = 1;
  bool training = false;    // forward keeps the reserve
  bool has_panels = false;  // the weights come as panels, see prepared.h

  const Facts& facts() const { return facts_of(cell); }
  int64_t R() const { return P ? P : H; }
  int64_t Hp() const { return round_up(H, kHiddenPadding); }
  int64_t gate_rows() const { return facts().gates * H; }  // of W_ih and W_hh
  int64_t width(int state) const { return state == 0 ? R() : H; }
};

// One pointer for each role that a weight may have in a direction. Null means that there is no such
// weight or, for a gradient, that it was not asked for. Rows are ordered by gate, in the cell's
// order, then by unit.
template <class T>
struct ByRole {
  T* w_ih = nullptr;    // [G*H][I]
  T* w_hh = nullptr;    // [G*H][R]
  T* b_ih = nullptr;    // [G*H]
  T* b_hh = nullptr;    // [G*H]
  T* w_hr = nullptr;    // [P][H]
  T* w_unit = nullptr;  // [unit weights][H]
};
using Weights = ByRole<const void>;
using WeightGradients = ByRole<void>;

// What acts on a step from outside the cell. A null pointer is off and costs nothing. No backend
// has any of these yet: each refuses a pointer that is not null.
struct Modifiers {
  const uint8_t* reset = nullptr;             // [rows]: replace the states before the row's step
  const void* reset_states[kMaxStates] = {};  // by these, shaped as hx; null: by zeros
  const void* recurrent_factor = nullptr;  // [D][B][R]: times the operand of the recurrent product
  const void* step_inputs = nullptr;       // [rows][kinds][H]: pointwise inputs for the cell

  bool any() const { return reset || recurrent_factor || step_inputs; }
};

struct Problem : Shape {
  const int64_t* offsets = nullptr;  // [T+1], packed only; null: every step has B rows

  const void* input = nullptr;
  int64_t input_step = 0, input_row = 0;
  const void* hx[kMaxStates] = {};  // null: zeros
  Weights weights[kMaxDirections];
  const void* panels = nullptr;  // the same, as the backend prepares them, if has_panels
  bool backwards = false;        // the first step visits units from the last to the first
  Modifiers modifiers;

  void* output = nullptr;     // backward reads what forward wrote
  void* reserve = nullptr;    // null: not kept
  void* hn[kMaxStates] = {};  // one for each state of the cell

  int64_t batch(int64_t t) const { return offsets ? offsets[t + 1] - offsets[t] : B; }
  int64_t row(int64_t t, int64_t b) const { return (offsets ? offsets[t] : t * B) + b; }
  int64_t input_offset(int64_t t, int64_t b) const {
    return offsets ? row(t, b) * input_row : t * input_step + b * input_row;
  }
};

// What backward adds: the incoming gradients (null: zero) and where the results go (null: not asked
// for).
struct BackwardProblem : Problem {
  const void* grad_output = nullptr;  // [rows][D*R], contiguous
  const void* grad_hn[kMaxStates] = {};

  void* grad_input = nullptr;  // [rows][I], contiguous
  void* grad_hx[kMaxStates] = {};
  WeightGradients grad_weights[kMaxDirections];

  bool wants_states() const {
    for (const void* const grad : grad_hx)
      if (grad) return true;
    return false;
  }
};

}  // namespace fusedrnn
