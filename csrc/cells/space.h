#pragma once

#include <cstdint>

namespace fusedrnn {

// What a program reads and writes; the name of each in the text comes first.
enum class Space : uint8_t {
  product,    // p     forward: the sums of the stage's products
  late,       // x     forward: its late inputs
  h,          // h     h before the step or, in backward, what `needs` says
  state,      // s     forward: the states after h, from s1 on. Backward: ds, their gradients
  handed,     // k     from the first stage to the second. Backward: dk, the other way
  weight,     // w     unit weights
  saved,      // save  from forward to backward
  result,     // r     the stage's result; in backward restored
  gradient,   // g     backward: the slots of the cell's gradients
  of_result,  // dr    backward
  carry,      // carry backward
  number,     // #     constants
  temporary,  // t
};
constexpr int kSpaces = 13;

}  // namespace fusedrnn
