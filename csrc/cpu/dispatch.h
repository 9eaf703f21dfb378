// From the cell of a problem to the kernel templated on it; for code that an instruction set
// compiles.
#pragma once

#include "cells/cell.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

// Of cells that are one part.
template <class Call>
inline auto with_undivided_cell(Cell cell, Call call) {
  switch (cell) {
    case Cell::lstm: return call(LstmCell());
    case Cell::gru: return call(GruCell());
    case Cell::rnn_relu: return call(RnnCell<false>());
    case Cell::rnn_tanh: return call(RnnCell<true>());
    case Cell::gru_reset_before: break;  // has parts
  }
  __builtin_unreachable();
}

template <class Call>
inline auto with_cell(Cell cell, Call call) {
  if (is_divided(cell)) return call(GruResetBeforeCell());
  return with_undivided_cell(cell, call);
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
