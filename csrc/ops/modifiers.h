// A layer's modifiers as the ops take them (layer/problem.h says what they do):
//
//   reset              bool [T, B]
//   reset_states       for each state, of its width
//   recurrent_factor   of the width of h
//   keep               for each state, of its width; of shape [0] where there is none
//
// The latter three have shape [T, D, B, width], in which T, D and B may be 1: that value is for
// all. (D and B of reset_states may not, since each direction and sequence has a gradient of its
// own.) The K values that the cell reads at each step beside the input are one tensor,
//
//   step_inputs        [T, D, B, K, H], any of whose strides may be 0
//
// T is the number of steps, also of packed sequences, which B counts in their order.
//
// Part of the op layer, like layer_ops.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "states.h"
#include "tensors.h"

namespace fusedrnn {

constexpr const char* kResetStates[] = {"reset_states[0]", "reset_states[1]", "reset_states[2]",
                                        "reset_states[3]"};
constexpr const char* kKeep[] = {"keep[0]", "keep[1]", "keep[2]", "keep[3]"};
static_assert(sizeof(kResetStates) == sizeof(kHx) && sizeof(kKeep) == sizeof(kHx));

struct GivenModifiers {
  const std::optional<Tensor>& reset;
  const std::optional<std::vector<Tensor>>& reset_states;
  const std::optional<Tensor>& recurrent_factor;
  const std::optional<std::vector<Tensor>>& keep;
  const std::optional<Tensor>& step_inputs;
};

inline int64_t stride_of(const Tensor& t, int64_t dim) {
  return t.size(dim) == 1 ? 0 : t.stride(dim);
}

// Checks the values that a modifier has for each step, direction and sequence, and says where they
// are.
inline Spread<const void> spread_of(const char* name, const Tensor& t, int64_t width,
                                    const Problem& p, const Tensor& input,
                                    std::vector<Tensor>& copies) {
  check_like(name, t, input);
  const auto is = [&](int64_t dim, int64_t n) { return t.size(dim) == n || t.size(dim) == 1; };
  FUSEDRNN_CHECK(
      t.dim() == 4 && is(0, p.T) && is(1, p.directions) && is(2, p.B) && t.size(3) == width, name,
      ": expected shape ", to_string(Sizes{p.T, p.directions, p.B, width}),
      ", of which all but the last may be 1, got ", to_string(sizes_of(t)));
  copies.push_back(t.stride(3) == 1 || width == 1 ? t : dense(name, t));
  const Tensor& there = copies.back();
  return {data_of(name, there), stride_of(there, 0), stride_of(there, 1), stride_of(there, 2)};
}

// A call has step inputs if its cell has, and not otherwise.
inline void check_step_inputs(bool given, const Problem& p) {
  const int count = p.facts().step_inputs;
  FUSEDRNN_CHECK(given == (count > 0), "step_inputs: the cell ", p.facts().names.cell, " has ",
                 count, ", got ", given ? "some" : "none; modified_forward takes them");
}

// Step inputs that are checked, in memory that kernels can read: the first three dimensions are
// `sizes`, and the others those of the cell.
inline Tensor ready_step_inputs(const Tensor& t, Sizes sizes, const Problem& p,
                                const Tensor& input) {
  const char* const name = "step_inputs";
  check_like(name, t, input);
  sizes.push_back(p.facts().step_inputs), sizes.push_back(p.H);
  FUSEDRNN_CHECK(sizes_of(t) == sizes, name, ": expected shape ", to_string(sizes), ", got ",
                 to_string(sizes_of(t)));
  return t.stride(4) == 0 || t.stride(4) == 1 || p.H == 1 ? t : dense(name, t);
}

inline void place_step_inputs(const Tensor& ready, Problem& p) {
  StepInputs<const void>& to = p.modifiers.step_inputs;
  to.data = data_of("step_inputs", ready);
  to.step = ready.stride(0), to.direction = ready.stride(1), to.row = ready.stride(2);
  to.kind = ready.stride(3), to.unit = p.H == 1 ? 1 : ready.stride(4);
}

// Places the step inputs of one layer of [layers, T, B, ...].
inline void place_step_inputs(const Tensor& ready, int64_t layer, Problem& p) {
  StepInputs<const void>& to = p.modifiers.step_inputs;
  to.data = static_cast<const char*>(data_of("step_inputs", ready)) +
            layer * ready.stride(0) * size_of(p.dtype);
  to.step = ready.stride(1), to.row = ready.stride(2);
  to.kind = ready.stride(3), to.unit = p.H == 1 ? 1 : ready.stride(4);
}

inline void place_modifiers(const GivenModifiers& given, const Tensor& input, Problem& p,
                            std::vector<Tensor>& copies) {
  Modifiers& m = p.modifiers;
  p.modified = true;
  const int states = p.facts().states;
  if (given.reset) {
    const Tensor& reset = *given.reset;
    const bool together =
        input.is_cpu() ? reset.is_cpu()
                       : reset.is_cuda() && reset.get_device_index() == input.get_device_index();
    FUSEDRNN_CHECK(together && reset.scalar_type() == ScalarType::Bool, "reset: expected bool on ",
                   device_of(input), ", got ", dtype_name(reset), " on ", device_of(reset));
    check_sizes("reset", reset, {p.T, p.B});
    m.reset = {static_cast<const uint8_t*>(data_of("reset", reset)), stride_of(reset, 0), 0,
               stride_of(reset, 1)};
  }
  if (given.reset_states && !given.reset_states->empty()) {
    FUSEDRNN_CHECK(given.reset, "reset_states: expected none without reset");
    check_states("reset_states", *given.reset_states, p.facts());
    for (int i = 0; i < states; ++i) {
      const Tensor& state = (*given.reset_states)[static_cast<size_t>(i)];
      m.reset_states[i] = spread_of(kResetStates[i], state, p.width(i), p, input, copies);
      FUSEDRNN_CHECK(state.size(1) == p.directions && state.size(2) == p.B, kResetStates[i],
                     ": expected one for each direction and sequence, got shape ",
                     to_string(sizes_of(state)));
    }
  }
  if (given.recurrent_factor)
    m.recurrent_factor =
        spread_of("recurrent_factor", *given.recurrent_factor, p.R(), p, input, copies);
  if (given.keep && !given.keep->empty()) {
    check_states("keep", *given.keep, p.facts());
    for (int i = 0; i < states; ++i)
      if (const Tensor& keep = (*given.keep)[static_cast<size_t>(i)]; !is_missing(keep))
        m.keep[i] = spread_of(kKeep[i], keep, p.width(i), p, input, copies);
  }
  check_step_inputs(given.step_inputs.has_value(), p);
  if (given.step_inputs) {
    const Sizes sizes{p.T, p.directions, p.B};
    copies.push_back(ready_step_inputs(*given.step_inputs, sizes, p, input));
    place_step_inputs(copies.back(), p);
  }
}

}  // namespace fusedrnn
