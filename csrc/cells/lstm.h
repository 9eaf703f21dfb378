// Long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al.
// 2000):
//
//   i, f, o = sigmoid(.)   g = tanh(.)          . = W_ih x + b_ih + W_hh h_prev + b_hh
//   c = f c_prev + i g
//   h = o tanh(c)
//
// With a projection (Sak et al. 2014) h is W_hr times that; the backends do this, not the cell.
#pragma once

#include "cell.h"

namespace fusedrnn {

struct LstmCell : OneStage<LstmCell> {
  static constexpr Cell cell{2};
  // clang-format off
  static constexpr Names names = {
      /*cell*/ "lstm", /*module*/ "LSTM", /*options*/ "",
      /*gates*/ "i f g o", /*products*/ "i f g o", /*saved*/ "i f g o c_prev",
      /*grads*/ "i f g o", /*states*/ "h c", /*unit weights*/ ""};
  // clang-format on
  static constexpr int inputs = 4, products = 4, saved = 5, grads = 4, states = 2;
  static constexpr bool restores = true;

  template <class M, class V>
  FUSEDRNN_CELL void forward(Forward<LstmCell, V>& unit) {
    const V i = M::sigmoid(unit.product[0]), f = M::sigmoid(unit.product[1]);
    const V g = M::tanh(unit.product[2]), o = M::sigmoid(unit.product[3]);
    V& c = unit.state[0];
    unit.save[0] = i, unit.save[1] = f, unit.save[2] = g, unit.save[3] = o, unit.save[4] = c;
    c = M::multiply_add(f, c, i * g);
    unit.result = o * M::tanh(c);
  }

  template <class M, class V>
  FUSEDRNN_CELL void backward(Backward<LstmCell, V>& unit) {
    const V i = unit.save[0], f = unit.save[1], g = unit.save[2], o = unit.save[3];
    const V c_prev = unit.save[4], dh = unit.dresult;
    V& dc = unit.dstate[0];
    const V tanh_c = M::tanh(M::multiply_add(f, c_prev, i * g));
    unit.result = o * tanh_c;
    const V dh_o = dh * o;
    const V d = dc + (dh_o - dh_o * tanh_c * tanh_c);
    unit.grad[0] = d * g * (i - i * i);
    unit.grad[1] = d * c_prev * (f - f * f);
    unit.grad[2] = d * i * (1 - g * g);
    unit.grad[3] = dh * tanh_c * (o - o * o);
    dc = d * f;
  }
};

using LstmCells = List<LstmCell>;

}  // namespace fusedrnn
