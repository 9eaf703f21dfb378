// The gated recurrent unit (Cho et al. 2014), with the reset gate after the recurrent product, as
// cuDNN and torch have it, or before it, as the paper's version 3 does:
//
//   r, z = sigmoid(.)                           . = W_ih x + b_ih + W_hh h_prev + b_hh
//   after   n = tanh(x_n + r n')                n' = W_hn h_prev + b_hn
//   before  n = tanh(x_n + W_hn (r h_prev) + b_hn)
//   h = n + z (h_prev - n)
//
// After: all three gates are one product. The reset gate scales n' before x_n is added, so x_n is a
// late input. In `grads` n' comes first: the recurrent product's gradients are then the slots
// n' r z, and the input projection's are r z n.
//
// Before: the candidate's product waits for r h_prev of all units, so that a step has two stages:
//   gates      W_r h_prev, W_z h_prev    ->  r;  z, handed on;  r h_prev, the candidate's operand
//   candidate  W_n (r h_prev)            ->  n, h
// Backward takes them in reverse order: the candidate gives dn and dz, the product dn W_n is the
// gradient of r h_prev, and the gates give dr.
#pragma once

#include "cell.h"

namespace fusedrnn {

struct GruCell : OneStage<GruCell> {
  static constexpr Cell cell{3};
  // clang-format off
  static constexpr Names names = {
      /*cell*/ "gru", /*module*/ "GRU", /*options*/ "reset_after=True",
      /*gates*/ "r z n", /*products*/ "n' r z", /*saved*/ "n' r z n",
      /*grads*/ "n' r z n", /*states*/ "h", /*unit weights*/ ""};
  // clang-format on
  static constexpr int inputs = 3, products = 3, saved = 4, grads = 4, states = 1;
  static constexpr int late = 1;
  static constexpr bool has_carry = true;
  static constexpr Needs backward_needs = Needs::h_prev;
  FUSEDRNN_CELL constexpr int gate_of_product(int slot) { return slot == 0 ? 2 : slot - 1; }
  // n' has no input, only b_hn.
  FUSEDRNN_CELL constexpr int input_of_product(int slot) { return slot - 1; }

  template <class M, class V>
  FUSEDRNN_CELL void forward(Forward<GruCell, V>& unit) {
    const V n_hidden = unit.product[0];
    const V r = M::sigmoid(unit.product[1]), z = M::sigmoid(unit.product[2]);
    const V n = M::tanh(unit.late[0] + r * n_hidden);
    unit.save[0] = n_hidden, unit.save[1] = r, unit.save[2] = z, unit.save[3] = n;
    unit.result = n + z * (unit.h_prev - n);
  }

  template <class M, class V>
  FUSEDRNN_CELL void backward(Backward<GruCell, V>& unit) {
    const V n_hidden = unit.save[0], r = unit.save[1], z = unit.save[2], n = unit.save[3];
    const V h_prev = unit.h, dh = unit.dresult;
    const V dn = dh * (1 - z) * (1 - n * n);
    unit.grad[0] = dn * r;
    unit.grad[1] = dn * n_hidden * (r - r * r);
    unit.grad[2] = dh * (h_prev - n) * (z - z * z);
    unit.grad[3] = dn;
    unit.carry = dh * z;
  }
};

struct GruResetBeforeCell;

struct ResetBeforeGates : Stage {
  using Whole = GruResetBeforeCell;
  static constexpr int index = 0, first_gate = 0, first_slot = 0;
  static constexpr int inputs = 2, products = 2, saved = 1, grads = 1, gives = 1;
  static constexpr bool has_carry = true, restores = true;
  static constexpr Needs backward_needs = Needs::h_prev;

  template <class M, class V>
  FUSEDRNN_CELL void forward(Forward<ResetBeforeGates, V>& unit) {
    const V r = M::sigmoid(unit.product[0]), z = M::sigmoid(unit.product[1]);
    unit.save[0] = r;
    unit.handed[0] = z;
    unit.result = r * unit.h_prev;
  }

  template <class M, class V>
  FUSEDRNN_CELL void backward(Backward<ResetBeforeGates, V>& unit) {
    const V r = unit.save[0], h_prev = unit.h, d = unit.dresult;
    unit.grad[0] = d * h_prev * (r - r * r);
    unit.carry = M::multiply_add(d, r, unit.carry);
    unit.result = r * h_prev;
  }
};

struct ResetBeforeCandidate : Stage {
  using Whole = GruResetBeforeCell;
  static constexpr int index = 1, first_gate = 2, first_slot = 1;
  static constexpr int inputs = 1, products = 1, saved = 2, grads = 2, takes = 1;
  static constexpr bool has_carry = true;
  static constexpr Needs backward_needs = Needs::h_prev;

  template <class M, class V>
  FUSEDRNN_CELL void forward(Forward<ResetBeforeCandidate, V>& unit) {
    const V z = unit.handed[0], n = M::tanh(unit.product[0]);
    unit.save[0] = z, unit.save[1] = n;
    unit.result = n + z * (unit.h_prev - n);
  }

  template <class M, class V>
  FUSEDRNN_CELL void backward(Backward<ResetBeforeCandidate, V>& unit) {
    const V z = unit.save[0], n = unit.save[1], h_prev = unit.h, dh = unit.dresult;
    unit.grad[0] = dh * (h_prev - n) * (z - z * z);
    unit.grad[1] = dh * (1 - z) * (1 - n * n);
    unit.carry = dh * z;
  }
};

struct GruResetBeforeCell {
  using Stages = List<ResetBeforeGates, ResetBeforeCandidate>;
  static constexpr Cell cell{4};
  // clang-format off
  static constexpr Names names = {
      /*cell*/ "gru_reset_before", /*module*/ "GRU", /*options*/ "reset_after=False",
      /*gates*/ "r z n", /*products*/ "r z n", /*saved*/ "r z n",
      /*grads*/ "r z n", /*states*/ "h", /*unit weights*/ ""};
  // clang-format on
  static constexpr int inputs = 3, products = 3, saved = 3, grads = 3, states = 1;
  static constexpr int unit_weights = 0;
  static constexpr bool has_carry = true;
  FUSEDRNN_CELL constexpr int gate_of_product(int slot) { return slot; }
};

using GruCells = List<GruCell, GruResetBeforeCell>;

}  // namespace fusedrnn
