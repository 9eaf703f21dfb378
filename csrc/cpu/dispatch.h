// From the cell of a problem to the kernel templated on it; included by isa/*.cpp alone.
#pragma once

#include "../cell.h"

namespace fusedrnn {
namespace FUSEDRNN_ISA {

template <class Call>
inline auto with_cell(Cell cell, Call call) {
  switch (cell) {
    case Cell::lstm: return call(LstmCell());
    case Cell::gru: return call(GruCell());
    case Cell::rnn_relu: return call(RnnCell<false>());
    case Cell::rnn_tanh: break;
  }
  return call(RnnCell<true>());
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn
