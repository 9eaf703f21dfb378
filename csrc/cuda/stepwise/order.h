// The order in which the stepwise kernels have the gates and the gradients of a cell. All cells
// have it, and only programs need it: a compiled cell's gates are as the weights have them already.
//
//   products    [stage 0's][stage 1's], each in the order of the gates, so that what a stage
//               multiplies is one range: rows of W_hh in that order, and columns of its gradients
//   gradients   [those of the products][those of late inputs][those of unit weights]
#pragma once

#include "cells/list.h"

namespace fusedrnn::cuda {

struct GateOrder {
  int first_product[kMaxStages] = {};                         // of a stage
  signed char place_of_product[kMaxStages][kMostGates] = {};  // in its stage, by slot
  signed char gate_of_product[kMostGates] = {};               // of W_hh, of all stages' products
  signed char column_of_input[kMostGates] = {};               // by gate of W_ih
  signed char column_of_gradient[kMostGrads] = {};            // by slot of the cell
  bool as_weights = true;  // the products' order is that of the gates of W_hh

  GateOrder() = default;
  explicit GateOrder(const Facts& facts);
};

// Calls f(at, number, count) for each range of consecutive numbers, numbers[at] = number being the
// first of it.
template <class F>
void for_each_range(const signed char* numbers, int count, const F& f) {
  for (int at = 0; at < count;) {
    int end = at + 1;
    while (end < count && numbers[end] == numbers[end - 1] + 1) ++end;
    f(at, numbers[at], end - at);
    at = end;
  }
}

}  // namespace fusedrnn::cuda
