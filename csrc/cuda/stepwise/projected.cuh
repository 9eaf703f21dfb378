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
    StepValues<const E> keep;
  } direction[kMaxDirections];
};

template <class E>
__global__ void __launch_bounds__(kBlockThreads)
    store_projected(const __grid_constant__ ProjectedSteps<E> steps) {
  const auto& s = steps.direction[blockIdx.z];
  const Place at = place_of_thread<1>();
  if (at.row >= s.rows || at.column >= steps.P) return;
  const int64_t here = at.row * steps.P + at.column;
  Sum<E> sum = s.projected[here];
  if (s.keep) {
    const Sum<E> share = widen(s.keep.at(at.row)[at.column]);
    sum = mixed(share, rounded_product(share, widen(s.h[here])), sum);
  }
  const E h = narrowed<E>(sum);
  s.h[here] = h;
  s.y[at.row * steps.y_row + at.column] = h;
}

template <class E>
struct ProjectedGradients {  // backward: before the product
  int64_t P = 0, y_row = 0;
  struct Step {
    int64_t rows = 0;
    const E* grad_y = nullptr;  // rows of y_row, or null
    Sum<E>* dh = nullptr;       // [rows][P] from the step after; gets what passes the cell by
    StateBefore<E> before;
    E* h_before = nullptr;  // [rows][P], gets what W_hh multiplied, or null
    E* grads = nullptr;     // [rows][P]
    StepValues<const E> factor, keep;
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
  Sum<E> gradient = s.dh[here] + dy;
  if (s.keep) s.dh[here] = split(widen(s.keep.at(at.row)[at.column]), gradient);
  narrow(gradient, s.grads[here]);
  if (!s.h_before) return;
  Sum<E> h[1];
  load_before<1>(s.before, steps.y_row, steps.P, at.row, at.column, h);
  if (s.factor) h[0] *= widen(s.factor.at(at.row)[at.column]);
  narrow(h[0], s.h_before[here]);
}

}  // namespace fusedrnn::cuda
