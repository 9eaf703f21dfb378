// C++ of a program (program.h), for a compiler: g++ on the CPU, NVRTC on a GPU. It does what the
// interpreter does operation by operation. The text is the same for all of them: it computes one
// value (or vector) of each slot, and leaves it to `At` where they are, and to `M` what they are.
//
//   template <class M, class At>
//   FUSEDRNN_CELL void forward_0(At& at) {     stage 0; also forward_saving_0, backward_0, and
//     const auto product1 = at.product(1);     backward_restoring_0 where a stage restores
//     const auto v0 = M::sigmoid(product1);
//     ...
//     at.set_result(v7);
//   }
//
// `At` has a function for each space, and set_ one for those that are written. `M` has the
// functions, by the names of the operations; number(double), infinity() and nan(); and
// multiply_add(a, b, c) and select(condition, a, b). Every multiply_add is written out, so that
// with -ffp-contract=off the bits are those of the interpreter.
#pragma once

#include <string>

#include "program.h"

namespace fusedrnn {

// All passes of all stages. Two programs of the same operations have the same text.
std::string generated(const Program& program);

}  // namespace fusedrnn
