// A cell's states as the ops take them: a list, h first, in the order of the cell's facts.
//
// An argument `hx` has all of them, or is none or empty, which stands for zeros. One gradient may
// be missing while another is there: then a tensor of shape [0] stands in its place, as it does in
// results that were not asked for. (A list of optional tensors would say it, too, but torch's
// autograd takes no part in lists that hold a None.) Part of the op layer, like layer_ops.cpp.
#pragma once

#include <vector>

#include "tensors.h"

namespace fusedrnn {

// What messages call the members of the lists. Gradients of the states after each step come after
// those of the final states.
constexpr const char* kHx[] = {"hx[0]", "hx[1]", "hx[2]", "hx[3]"};
constexpr const char* kGradHn[] = {"grad_hn[0]", "grad_hn[1]", "grad_hn[2]", "grad_hn[3]",
                                   "grad_hn[4]", "grad_hn[5]", "grad_hn[6]"};
static_assert(sizeof(kHx) == kMaxStates * sizeof(*kHx));
static_assert(sizeof(kGradHn) == (2 * kMaxStates - 1) * sizeof(*kGradHn));

// Checks that a list has as many states as the cell.
inline void check_states(const char* name, const std::vector<Tensor>& states, const Facts& facts) {
  FUSEDRNN_CHECK(static_cast<int>(states.size()) == facts.states, name, ": expected ", facts.states,
                 " state(s) (", facts.names.states, ") for the cell ", facts.names.cell, ", got ",
                 states.size());
}

inline Sizes state_sizes(const Shape& s, int state) { return {s.directions, s.B, s.width(state)}; }

inline bool is_missing(const Tensor& t) { return t.dim() == 1 && t.size(0) == 0; }

}  // namespace fusedrnn
