// What modifiers do between two steps, where a call has resets or a factor: one more kernel per
// step. A thread has one column of one sequence.
//
//   forward    enter_step: before the step's product. States are replaced where the walk crosses a
//              boundary, and h times its factor is the product's operand
//   backward   leave_step: after the step's product, which is times the factor, too. What would
//              cross a boundary is added to the gradients of the reset states
#pragma once

#include "cuda/launch.cuh"
#include "steps.cuh"

namespace fusedrnn::cuda {

template <class E>
struct EnteredSteps {
  int64_t R = 0, H = 0;
  struct Step {
    int64_t rows = 0;
    Boundary<E> boundary;
    E* h = nullptr;                    // [rows][R]
    Sum<E>* state[kOtherStates] = {};  // [rows][H], null where the cell has none
    StepValues<const E> factor;
    E* operand = nullptr;  // [rows][R], gets h times the factor, if there is one
  } direction[kMaxDirections];
};

template <class E>
__global__ void __launch_bounds__(kBlockThreads)
    enter_step(const __grid_constant__ EnteredSteps<E> steps) {
  const auto& s = steps.direction[blockIdx.z];
  const Place at = place_of_thread<1>();
  const int64_t row = at.row, column = at.column;
  if (row >= s.rows) return;
  const bool is_replaced = s.boundary.is_before(row);
  Sum<E> value[1];
  if (column < steps.R) {
    E* const h = s.h + row * steps.R + column;
    if (is_replaced) {
      s.boundary.load_state(0, row, column, value);
      narrow(value[0], *h);
    }
    if (s.factor)
      narrow(widen(*h) * widen(s.factor.at(row)[column]), s.operand[row * steps.R + column]);
  }
  if (!is_replaced || column >= steps.H) return;
#pragma unroll
  for (int i = 0; i < kOtherStates; ++i) {
    if (!s.state[i]) continue;
    s.boundary.load_state(1 + i, row, column, value);
    s.state[i][row * steps.H + column] = value[0];
  }
}

template <class E>
struct LeftSteps {
  int64_t R = 0, H = 0;
  struct Step {
    int64_t rows = 0;
    Boundary<E> boundary;
    Sum<E>* dh = nullptr;               // [rows][R], null: not wanted before this step
    Sum<E>* dstate[kOtherStates] = {};  // [rows][H], null where the cell has none
    StepValues<const E> factor;
    const Sum<E>* product = nullptr;  // [rows][R], if there is a factor; else dh has it
    bool passes = false;              // dh has what passes by the product
    StepValues<Sum<E>> grad_reset_states[kMaxStates];
  } direction[kMaxDirections];
};

template <class E>
__global__ void __launch_bounds__(kBlockThreads)
    leave_step(const __grid_constant__ LeftSteps<E> steps) {
  const auto& s = steps.direction[blockIdx.z];
  const Place at = place_of_thread<1>();
  const int64_t row = at.row, column = at.column;
  if (row >= s.rows) return;
  const bool stops = s.boundary.is_before(row);
  const auto stop = [&](int i, Sum<E>& gradient) {
    if (s.grad_reset_states[i]) s.grad_reset_states[i].at(row)[column] += gradient;
    gradient = 0;
  };
  if (s.dh && column < steps.R) {
    Sum<E>& dh = s.dh[row * steps.R + column];
    if (s.factor) {
      const Sum<E> product = s.product[row * steps.R + column];
      dh = (s.passes ? dh : 0) + product * widen(s.factor.at(row)[column]);
    }
    if (stops) stop(0, dh);
  }
  if (!stops || column >= steps.H) return;
#pragma unroll
  for (int i = 0; i < kOtherStates; ++i)
    if (s.dstate[i]) stop(1 + i, s.dstate[i][row * steps.H + column]);
}

}  // namespace fusedrnn::cuda
