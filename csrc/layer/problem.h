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
#include "cells/program.h"
#include "sizes.h"

namespace fusedrnn {

// Only the sizes, which are all that a plan depends on.
struct Shape {
  Cell cell{};
  const Program* program = nullptr;  // of a cell that is none of the compiled ones, else null
  Dtype dtype = Dtype::f32;
  int64_t T = 0, B = 0, I = 0, H = 0, P = 0;  // P = 0: not projected
  int64_t rows = 0;                           // alive (t, b) pairs, T*B unless packed
  int directions = 1;
  bool training = false;    // forward keeps the reserve
  bool modified = false;    // there may be modifiers, or all states are wanted
  bool has_panels = false;  // the weights come as panels, see prepared.h

  const Facts& facts() const { return program ? program->facts : facts_of(cell); }
  int64_t R() const { return P ? P : H; }
  int64_t Hp() const { return round_up(H, kHiddenPadding); }
  int64_t input_rows() const { return facts().inputs * H; }     // of W_ih
  int64_t hidden_rows() const { return facts().products * H; }  // of W_hh
  int64_t width(int state) const { return state == 0 ? R() : H; }
};

// One pointer for each role that a weight may have in a direction. Null means that there is no such
// weight or, for a gradient, that it was not asked for. Rows are ordered by gate, in the cell's
// order, then by unit. (A compiled cell has as many products as inputs, one of each for a gate.)
template <class T>
struct ByRole {
  T* w_ih = nullptr;    // [inputs*H][I]
  T* w_hh = nullptr;    // [products*H][R]
  T* b_ih = nullptr;    // [inputs*H]
  T* b_hh = nullptr;    // [products*H]
  T* w_hr = nullptr;    // [P][H]
  T* w_unit = nullptr;  // [unit weights][H]
};
using Weights = ByRole<const void>;
using WeightGradients = ByRole<void>;

// Values that belong to the steps of the sequences, with strides of their own, in elements: those
// of step t, direction d and sequence b begin at data + at(t, d, b). A stride of 0 says that all
// share them. They are contiguous, and as many as the state that they act on has.
template <class T>
struct Spread {
  T* data = nullptr;
  int64_t step = 0, direction = 0, row = 0;

  explicit operator bool() const { return data != nullptr; }
  int64_t at(int64_t t, int64_t d, int64_t b) const { return t * step + d * direction + b * row; }
};

// Values that the cell reads at each step beside the input, a row of H for each of its step inputs.
// `unit` is 1, or 0 where all units share a value; rows of gradients are contiguous.
template <class T>
struct StepInputs : Spread<T> {
  int64_t kind = 0, unit = 1;
};

// What acts on a step from outside the cell. What is null is off and costs nothing.
//
//   reset              The sequence begins anew with step t: there is a boundary before it. A walk
//                      that crosses the boundary goes on from `reset_states`, or from zeros. In
//                      backward no gradient crosses it; the states get it that were put there.
//   recurrent_factor   times what is multiplied by W_hh, in every stage; nothing else of h
//   keep               the share of a state before the step that stays in it:
//                      keep * before + (1 - keep) * what the cell gives. h is the projected one.
struct Modifiers {
  Spread<const uint8_t> reset;                  // one value each; the same for both directions
  Spread<const void> reset_states[kMaxStates];  // those of the step after the boundary
  Spread<const void> recurrent_factor;
  Spread<const void> keep[kMaxStates];
  // What a program's cell reads; walks hand it to tiles or kernels, and do nothing else with it.
  StepInputs<const void> step_inputs;

  bool keeps_states() const {
    for (const Spread<const void>& share : keep)
      if (share) return true;
    return false;
  }
  // Whether something acts between two steps.
  bool any() const { return reset || recurrent_factor || keeps_states(); }
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
  // The states after each step, [rows][D*H], of those after h (which is the output); null: not
  // wanted.
  void* states[kMaxStates] = {};

  int64_t batch(int64_t t) const { return offsets ? offsets[t + 1] - offsets[t] : B; }
  int64_t row(int64_t t, int64_t b) const { return (offsets ? offsets[t] : t * B) + b; }
  int64_t input_offset(int64_t t, int64_t b) const {
    return offsets ? row(t, b) * input_row : t * input_step + b * input_row;
  }
  // The step after the boundary that a direction crosses on its way to step t of sequence b, which
  // is t itself or, in reverse, t + 1; -1 if there is none.
  int64_t boundary(int64_t t, int64_t b, bool reverse) const {
    const Spread<const uint8_t>& reset = modifiers.reset;
    const int64_t after = reverse ? t + 1 : t;
    if (!reset || after == T || b >= batch(after)) return -1;
    return reset.data[reset.at(after, 0, b)] ? after : -1;
  }
  bool wants_all_states() const { return any_of(states); }

 protected:
  template <class T>
  static bool any_of(T* const (&pointers)[kMaxStates]) {
    for (T* const pointer : pointers)
      if (pointer) return true;
    return false;
  }
};

// What backward adds: the incoming gradients (null: zero) and where the results go (null: not asked
// for).
struct BackwardProblem : Problem {
  const void* grad_output = nullptr;  // [rows][D*R], contiguous
  const void* grad_hn[kMaxStates] = {};
  const void* grad_states[kMaxStates] = {};  // of `states`

  void* grad_input = nullptr;  // [rows][I], contiguous
  void* grad_hx[kMaxStates] = {};
  WeightGradients grad_weights[kMaxDirections];
  // Added to what is there, in the compute type (float64 for float64, else float32).
  Spread<void> grad_reset_states[kMaxStates];
  StepInputs<void>
      grad_step_inputs;  // in the storage type; rows that are not alive stay as they are

  bool wants_states() const { return any_of(grad_hx); }
  bool has_grad_states() const { return any_of(grad_states); }
  bool wants_reset_states() const {
    for (const Spread<void>& grad : grad_reset_states)
      if (grad) return true;
    return false;
  }
};

}  // namespace fusedrnn
