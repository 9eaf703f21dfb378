// The simple recurrent network (Elman 1990), with tanh or, after Le, Jaitly and Hinton (2015),
// relu:
//
//   h = tanh(.) or max(., 0)          . = W_ih x + b_ih + W_hh h_prev + b_hh
#pragma once

#include "cell.h"

namespace fusedrnn {

template <bool kTanh>
struct RnnCell : OneStage<RnnCell<kTanh>> {
  static constexpr Cell cell{kTanh ? 0 : 1};
  // clang-format off
  static constexpr Names names = {
      /*cell*/ kTanh ? "rnn_tanh" : "rnn_relu", /*module*/ "RNN",
      /*options*/ kTanh ? "nonlinearity=tanh" : "nonlinearity=relu",
      /*gates*/ "h", /*products*/ "h", /*saved*/ "", /*grads*/ "h", /*states*/ "h",
      /*unit weights*/ ""};
  // clang-format on
  static constexpr int inputs = 1, products = 1, saved = 0, grads = 1, states = 1;
  static constexpr Needs backward_needs = Needs::h;

  template <class M, class V>
  FUSEDRNN_CELL void forward(Forward<RnnCell, V>& unit) {
    unit.result = kTanh ? M::tanh(unit.product[0]) : M::relu(unit.product[0]);
  }

  template <class M, class V>
  FUSEDRNN_CELL void backward(Backward<RnnCell, V>& unit) {
    const V h = unit.h, dh = unit.dresult;
    unit.grad[0] = kTanh ? dh * (1 - h * h) : M::where_positive(h, dh);
  }
};

using RnnCells = List<RnnCell<true>, RnnCell<false>>;

}  // namespace fusedrnn
