// One step of every unit of every sequence: the fused kernels between two recurrent products.
//
//   forward    gates + product + biases -> activations -> c, h, y, what backward needs
//   backward   dh, dc and what forward kept -> gradients of the gates, dc of the step before
//
// A thread has N neighbouring units of one sequence; both directions are one launch (grid z). Rows
// that are not alive at this step are not touched. Gates are in torch's order, [G][H] per row; the
// GRU's gradients have one part more, since the reset gate stands between the two products:
//   LSTM i f g o    GRU r z n' | n    RNN h        the recurrent product's come first
//
// Of a cell of two parts (cell.h) each has a kernel of its own, over its slots of the whole's rows.
// The first leaves the second part's operand in y, and backward in h; c and dc are what the parts
// hand to each other.
#pragma once

#include "cells/cell.h"
#include "cuda/launch.cuh"
#include "cuda/types.cuh"

namespace fusedrnn::cuda {

template <class E>
struct ForwardStep {  // of one direction
  int64_t rows = 0;
  const Sum<E>* gates = nullptr;    // [rows][G][H] input projection
  const Sum<E>* product = nullptr;  // [rows][G][H] recurrent product
  const E* b_ih = nullptr;          // [G][H] or null
  const E* b_hh = nullptr;
  E* h = nullptr;       // [rows][H], read where the cell needs it, then written
  Sum<E>* c = nullptr;  // [rows][H]
  E* y = nullptr;       // rows of y_row, or null: projected, h is not the output
  int64_t y_row = 0;
  E* save = nullptr;  // [rows][saved][Hp] or null
};
template <class E>
struct ForwardSteps {
  int64_t H = 0, Hp = 0;
  ForwardStep<E> direction[kMaxDirections];
};

template <class C, class E, int N>
__global__ void __launch_bounds__(kBlockThreads)
    forward_cell(const __grid_constant__ ForwardSteps<E> steps) {
  using S = Sum<E>;
  using Whole = typename C::Whole;
  constexpr bool kGivesOperand = is_part<C> && std::is_same_v<C, typename Whole::First>;
  constexpr int kSaved = C::saved ? C::saved : 1;
  const ForwardStep<E>& s = steps.direction[blockIdx.z];
  const Place at = place_of_thread<N>();
  const int64_t H = steps.H, row = at.row, unit = at.column;
  if (row >= s.rows) return;
  if (unit >= H) {  // what is kept has room for more units than there are
    const S zeros[N] = {};
    if (s.save && unit < steps.Hp)
#pragma unroll
      for (int slot = 0; slot < C::saved; ++slot)
        store<N>(zeros, s.save + (row * Whole::saved + C::first_slot + slot) * steps.Hp + unit);
    return;
  }

  S input[C::inputs][N], product[C::products][N];
#pragma unroll
  for (int g = 0; g < C::inputs; ++g) {
    S bias[N];
    load<N>(s.gates + (row * Whole::inputs + C::first_gate + g) * H + unit, input[g]);
    load_or_zero<N>(s.b_ih ? s.b_ih + (C::first_gate + g) * H + unit : nullptr, bias);
#pragma unroll
    for (int n = 0; n < N; ++n) input[g][n] += bias[n];
  }
#pragma unroll
  for (int slot = 0; slot < C::products; ++slot) {
    S bias[N];
    const int gate = C::gate_of_product(slot), of_input = C::input_of_product(slot);
    load<N>(s.product + (row * C::products + gate) * H + unit, product[slot]);
    load_or_zero<N>(s.b_hh ? s.b_hh + (C::first_gate + gate) * H + unit : nullptr, bias);
#pragma unroll
    for (int n = 0; n < N; ++n)
      product[slot][n] += of_input < 0 ? bias[n] : bias[n] + input[of_input < 0 ? 0 : of_input][n];
  }
  S h_prev[N], c[N], h[N], save[kSaved][N];
  if (C::has_carry) load<N>(s.h + row * H + unit, h_prev);
  if (C::has_c) load<N>(s.c + row * H + unit, c);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    S of_unit[C::products], kept[kSaved];
#pragma unroll
    for (int slot = 0; slot < C::products; ++slot) of_unit[slot] = product[slot][n];
    const S late = C::has_late_input ? input[C::inputs - 1][n] : S(0);
    C::template forward<DeviceMath<S>>(of_unit, late, C::has_carry ? h_prev[n] : S(0), c[n], h[n],
                                       kept);
#pragma unroll
    for (int slot = 0; slot < C::saved; ++slot) save[slot][n] = kept[slot];
  }
  if (!kGivesOperand) store<N>(h, s.h + row * H + unit);
  if (s.y) store<N>(h, s.y + row * s.y_row + unit);
  if (C::has_c) store<N>(c, s.c + row * H + unit);
  if (s.save) {
#pragma unroll
    for (int slot = 0; slot < C::saved; ++slot)
      store<N>(save[slot], s.save + (row * Whole::saved + C::first_slot + slot) * steps.Hp + unit);
  }
}

// Where a row's h before a step is: with the step before it (the first `rows` rows), or in hx.
template <class E>
struct StateBefore {
  const E* y = nullptr;  // rows of y_row
  int64_t rows = 0;
  const E* hx = nullptr;  // [B][R] or null: zeros
};
template <int N, class E, class S>
__device__ __forceinline__ void load_before(const StateBefore<E>& before, int64_t y_row, int64_t R,
                                            int64_t row, int64_t column, S (&to)[N]) {
  if (row < before.rows) return load<N>(before.y + row * y_row + column, to);
  load_or_zero<N>(before.hx ? before.hx + row * R + column : nullptr, to);
}

template <class E>
struct BackwardStep {  // of one direction
  int64_t rows = 0;
  const E* grad_y = nullptr;  // rows of y_row, or null: zeros (or already in dh, when projected)
  Sum<E>* dh = nullptr;       // [rows][H] from the step after; GRU: what passes by the product;
                              // a part: of its operand, or null for zeros
  Sum<E>* dc = nullptr;       // [rows][H]
  const E* save = nullptr;    // [rows][saved][Hp]
  const E* y = nullptr;       // this step's output, rows of y_row
  StateBefore<E> before;
  E* h_before = nullptr;  // [rows][H], gets h before this step, or null
  E* h = nullptr;         // [rows][H], gets h before its projection, or null
  E* grads = nullptr;     // [rows][grads][H]
};
template <class E>
struct BackwardSteps {
  int64_t H = 0, Hp = 0, y_row = 0;
  BackwardStep<E> direction[kMaxDirections];
};

template <class C, class E, int N>
__global__ void __launch_bounds__(kBlockThreads)
    backward_cell(const __grid_constant__ BackwardSteps<E> steps) {
  using S = Sum<E>;
  using Whole = typename C::Whole;
  constexpr int kSaved = C::saved ? C::saved : 1;
  const BackwardStep<E>& s = steps.direction[blockIdx.z];
  const Place at = place_of_thread<N>();
  const int64_t H = steps.H, row = at.row, unit = at.column;
  if (row >= s.rows || unit >= H) return;

  S dh[N], dy[N], dc[N], h[N], save[kSaved][N], grad[C::grads][N], carry[N];
  if constexpr (is_part<C>)
    load_or_zero<N>(s.dh ? s.dh + row * H + unit : nullptr, dh);
  else
    load<N>(s.dh + row * H + unit, dh);
  load_or_zero<N>(s.grad_y ? s.grad_y + row * steps.y_row + unit : nullptr, dy);
  if (C::has_c) load<N>(s.dc + row * H + unit, dc);
#pragma unroll
  for (int slot = 0; slot < C::saved; ++slot)
    load<N>(s.save + (row * Whole::saved + C::first_slot + slot) * steps.Hp + unit, save[slot]);
  if (C::has_carry || s.h_before) {
    load_before<N>(s.before, steps.y_row, H, row, unit, h);
    if (s.h_before) store<N>(h, s.h_before + row * H + unit);
  }
  if (!C::saved) load<N>(s.y + row * steps.y_row + unit, h);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    S kept[kSaved], found[C::grads];
#pragma unroll
    for (int slot = 0; slot < C::saved; ++slot) kept[slot] = save[slot][n];
    C::template backward<DeviceMath<S>>(kept, h[n], dh[n] + dy[n], dc[n], found, carry[n]);
#pragma unroll
    for (int slot = 0; slot < C::grads; ++slot) grad[slot][n] = found[slot];
  }
#pragma unroll
  for (int slot = 0; slot < C::grads; ++slot) {
    const int part = slot < C::products ? C::gate_of_product(slot) : slot;
    store<N>(grad[slot], s.grads + (row * Whole::grads + C::first_slot + part) * H + unit);
  }
  if (C::has_c) store<N>(dc, s.dc + row * H + unit);
  if (C::has_carry && !is_part<C>) store<N>(carry, s.dh + row * H + unit);
  if (s.h) store<N>(h, s.h + row * H + unit);
}

// A projected LSTM's own steps: its state is W_hr times what the cell gives.

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
