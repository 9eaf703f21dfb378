// What a team's walk is told, forward and backward: one launch for all teams of both directions.
#pragma once

#include "cuda/modifiers.cuh"
#include "walk.h"

namespace fusedrnn::cuda {

// What both directions have in common. The teams of the first direction are numbered before those
// of the second.
struct WalkProblem {
  int T = 0, H = 0, Hp = 0, B = 0, y_row = 0;
  const int64_t* offsets = nullptr;  // [T + 1] on the device, packed only
  int tiles = 0;                     // teams of a direction
  bool modified = false;             // by anything: all that few calls have
};

// Values per unit and sequence that a thread of a modified walk writes down within a step: they
// wait in memory, not in registers.
constexpr int forward_notes(int states) { return 3 + 2 * states; }
constexpr int backward_notes(int states) { return states; }

template <class E>
struct ForwardWalk : WalkProblem {
  ForwardSizes sizes;
  bool first = true, last = true;  // of the launches that one walk may be cut into
  struct Direction {
    int begin = 0, end = 0;         // steps of this launch
    const Sum<E>* gates = nullptr;  // [rows from first_row][G][H] input projection
    int first_row = 0;
    const E* w_hh = nullptr;  // [G][H][H]
    const E* b_ih = nullptr;  // [G][H] or null
    const E* b_hh = nullptr;
    const E* w_unit = nullptr;  // [unit weights][H]
    const E* h_in = nullptr;    // [B][H], null: zeros
    E* h_out = nullptr;
    struct State {                // [B][H] each
      const E* in = nullptr;      // of the first launch; null: zeros
      E* out = nullptr;           // of the last
      Sum<E>* between = nullptr;  // launches
      E* all = nullptr;           // after each step, as y; or null
    } state[kOtherStates];
    E* y = nullptr;     // rows of y_row
    E* save = nullptr;  // [rows][saved][Hp] or null
    DirectionModifiers<E> modifiers;
    float* notes = nullptr;  // [forward_notes][B][H] of scratch
  } direction[kMaxDirections];
};

template <class E>
struct BackwardWalk : WalkProblem {
  BackwardSizes sizes;
  bool wants_first = false;  // the gradient of h before the first step
  struct Direction {
    const E* w_hh = nullptr;    // [G][H][H]
    const E* w_unit = nullptr;  // [unit weights][H]
    const E* hx = nullptr;      // [B][H], null: zeros
    const E* grad_hn[kMaxStates] = {};
    const E* grad_y = nullptr;                // rows of y_row, null: zeros
    const E* y = nullptr;                     // rows of y_row
    const E* save = nullptr;                  // [rows][saved][Hp]
    E* grads = nullptr;                       // [rows][grads][H]
    E* grad_hx[kMaxStates] = {};              // [B][H] or null
    const E* grad_states[kOtherStates] = {};  // after each step, as grad_y
    DirectionModifiers<E> modifiers;
    float* notes = nullptr;  // [backward_notes][B][H] of scratch
    WalkValues<Sum<E>> grad_reset_states[kMaxStates];
  } direction[kMaxDirections];
};

}  // namespace fusedrnn::cuda
