// The steps of a projected cell that are its own: its state is W_hr times what the cell gives.
#pragma once

#include "cuda/launch.cuh"
#include "steps.cuh"

namespace fusedrnn::cuda {

template <class E>
struct ProjectedSteps {  // forward: after the product
  int64_t P = 0, y_row = 0;
  struct Step {
    int64_t rows = 0;
    const Sum<E>* projected = nullptr;  // [rows][P]
    E* h = nullptr;                     // [rows][P]
    E* y = nullptr;                     // rows of y_row
  } direction[kMaxDirections];
};

template <class E>
__global__ void __launch_bounds__(kBlockThreads)
    store_projected(const __grid_constant__ ProjectedSteps<E> steps) {
  const auto& s = steps.direction[blockIdx.z];
  const Place at = place_of_thread<1>();
  if (at.row >= s.rows || at.column >= steps.P) return;
  E h;
  narrow(s.projected[at.row * steps.P + at.column], h);
  s.h[at.row * steps.P + at.column] = h;
  s.y[at.row * steps.y_row + at.column] = h;
}

template <class E>
struct ProjectedGradients {  // backward: before the product
  int64_t P = 0, y_row = 0;
  struct Step {
    int64_t rows = 0;
    const E* grad_y = nullptr;   // rows of y_row, or null
    const Sum<E>* dh = nullptr;  // [rows][P] from the step after
    StateBefore<E> before;
    E* h_before = nullptr;  // [rows][P] or null
    E* grads = nullptr;     // [rows][P]
  } direction[kMaxDirections];
};

template <class E>
__global__ void __launch_bounds__(kBlockThreads)
    add_projected(const __grid_constant__ ProjectedGradients<E> steps) {
  const auto& s = steps.direction[blockIdx.z];
  const Place at = place_of_thread<1>();
  if (at.row >= s.rows || at.column >= steps.P) return;
  const int64_t here = at.row * steps.P + at.column;
  Sum<E> dy = 0;
  if (s.grad_y) dy = widen(s.grad_y[at.row * steps.y_row + at.column]);
  narrow(s.dh[here] + dy, s.grads[here]);
  if (!s.h_before) return;
  Sum<E> h[1];
  load_before<1>(s.before, steps.y_row, steps.P, at.row, at.column, h);
  narrow(h[0], s.h_before[here]);
}

}  // namespace fusedrnn::cuda
