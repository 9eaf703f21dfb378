// What the stepwise kernels are told: one step of every unit of every sequence, between two
// recurrent products. Both directions are one launch (grid z). Rows that are not alive at this step
// are not touched.
//
//   forward    gates + product + biases -> activations -> states, h, y, what backward needs
//   backward   dh, dstates and what forward kept -> gradients of the gates, earlier step's dstates
//
// Gates are in torch's order, [G][H] per row. Gradients are [grads][H] per row, in the order that
// order.h has: first those of the recurrent product, in the order of the gates, then those that
// late inputs have apart (the GRU's r z n' | n), then those of the unit weights.
//
// Each stage of a step has a product and a kernel of its own, over its slots of the cell's rows. A
// stage that is not the last leaves the next one's operand, and handed values for the stages after
// it.
#pragma once

#include "cuda/modifiers.cuh"

namespace fusedrnn::cuda {

template <class E>
struct ForwardStep {  // of one direction
  int64_t rows = 0;
  const Sum<E>* gates = nullptr;    // [rows][G][H] input projection
  const Sum<E>* product = nullptr;  // [rows][products][H] recurrent product of the stage
  const E* b_ih = nullptr;          // [G][H] or null
  const E* b_hh = nullptr;
  const E* w_unit = nullptr;         // [unit weights][H]
  E* h = nullptr;                    // [rows][H], read where the cell needs it, then written
  Sum<E>* state[kOtherStates] = {};  // [rows][H]
  Sum<E>* handed = nullptr;          // [rows][handed][H]
  E* operand = nullptr;              // [rows][H], what a stage before the last leaves
  E* y = nullptr;                    // rows of y_row, or null: projected, h is not the output
  int64_t y_row = 0;
  E* save = nullptr;  // [rows][saved][Hp] or null
  // Modifiers, and what else few calls want.
  StepValues<const E> factor;            // of what a stage before the last leaves
  StepValues<const E> keep[kMaxStates];  // h's is not here if it is projected
  Sum<E>* before[kOtherStates] = {};     // [rows][H], where stages are several: as they began
  E* states[kOtherStates] = {};          // rows of states_row, or null: get the states
};
template <class E>
struct ForwardSteps {
  int64_t H = 0, Hp = 0, states_row = 0;
  ForwardStep<E> direction[kMaxDirections];
  // By direction, if the cell has any. They come last, so that kernels of cells without them find
  // everything else where it always was.
  StepInputValues<const E> step_inputs[kMaxDirections];
};

// Where a row's h before a step is: with the step before it (the first `rows` rows), in hx, or, if
// there is a boundary between, among the reset states.
template <class E>
struct StateBefore {
  const E* y = nullptr;  // rows of y_row
  int64_t rows = 0;
  const E* hx = nullptr;  // [B][R] or null: zeros
  Boundary<E> boundary;
};
template <int N, class E, class V>
__device__ __forceinline__ void load_before(const StateBefore<E>& before, int64_t y_row, int64_t R,
                                            int64_t row, int64_t column, V (&to)[N]) {
  if (before.boundary.is_before(row)) return before.boundary.load_state(0, row, column, to);
  if (row < before.rows) return load<N>(before.y + row * y_row + column, to);
  load_or_zero<N>(before.hx ? before.hx + row * R + column : nullptr, to);
}

template <class E>
struct BackwardStep {  // of one direction
  int64_t rows = 0;
  const E* grad_y = nullptr;        // rows of y_row, or null: zeros (or already in dresult)
  const Sum<E>* dresult = nullptr;  // [rows][H] of what the stage gave: h, or an operand
  Sum<E>* carry = nullptr;          // [rows][H], may be where dresult is
  Sum<E>* dstate[kOtherStates] = {};
  const E* save = nullptr;    // [rows][saved][Hp]
  const E* w_unit = nullptr;  // [unit weights][H]
  const E* y = nullptr;       // this step's output, rows of y_row
  StateBefore<E> before;
  E* h_before = nullptr;  // [rows][H], gets what W_hh multiplied: h before this step; or null
  E* result = nullptr;    // [rows][H], gets what the stage gave, or null
  E* grads = nullptr;     // [rows][grads][H]
  // Modifiers, and what else few calls have.
  StepValues<const E> factor;               // of h_before, and of what a stage gave another
  StepValues<const E> keep[kMaxStates];     // h's is not here if it is projected
  Sum<E>* kept[kOtherStates] = {};          // [rows][H], may be dstate: what passes the cell by
  const E* grad_states[kOtherStates] = {};  // rows of states_row, or null: zeros
  Sum<E>* handed = nullptr;                 // [rows][handed back][H], of what stages hand on
};
template <class E>
struct BackwardSteps {
  int64_t H = 0, Hp = 0, y_row = 0, states_row = 0;
  BackwardStep<E> direction[kMaxDirections];
  StepInputValues<const E> step_inputs[kMaxDirections];  // as in forward
  StepInputValues<E> of_step_inputs[kMaxDirections];     // their gradients; null: not asked for
};

}  // namespace fusedrnn::cuda
