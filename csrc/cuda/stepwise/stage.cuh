// The kernels of a stage (steps.cuh says what they compute). A thread has N neighbouring units of
// one sequence.
#pragma once

#include "cells/cell.h"
#include "cuda/grid.cuh"
#include "steps.cuh"

namespace fusedrnn::cuda {

// N units of each of `count` slots; at(slot) is where they are.
template <int count, int M, int N, class V, class At>
__device__ __forceinline__ void load_slots(V (&to)[M][N], const At& at) {
#pragma unroll
  for (int slot = 0; slot < count; ++slot) load<N>(at(slot), to[slot]);
}
template <int count, int M, int N, class V, class At>
__device__ __forceinline__ void store_slots(const V (&from)[M][N], const At& at) {
#pragma unroll
  for (int slot = 0; slot < count; ++slot) store<N>(from[slot], at(slot));
}
// N units of each step input of a sequence.
template <int count, int M, int N, class T, class V>
__device__ __forceinline__ void load_step_inputs(const StepInputValues<T>& from, const Place& at,
                                                 V (&to)[M][N]) {
#pragma unroll
  for (int i = 0; i < count; ++i) from.load_units(at.row, i, at.column, to[i]);
}
// Unit n of each slot, and back.
template <int count, int M, int N, class V>
__device__ __forceinline__ void take(const V (&from)[M][N], int n, V (&to)[M]) {
#pragma unroll
  for (int slot = 0; slot < count; ++slot) to[slot] = from[slot][n];
}
template <int count, int M, int N, class V>
__device__ __forceinline__ void put(const V (&from)[M], int n, V (&to)[M][N]) {
#pragma unroll
  for (int slot = 0; slot < count; ++slot) to[slot][n] = from[slot];
}

// N values at `from`: added to those in registers, or times them.
template <int N, class From, class V>
__device__ __forceinline__ void add(const From* from, V (&to)[N]) {
  V more[N];
  load<N>(from, more);
#pragma unroll
  for (int n = 0; n < N; ++n) to[n] += more[n];
}
template <int N, class From, class V>
__device__ __forceinline__ void scale(const From* by, V (&to)[N]) {
  V factor[N];
  load<N>(by, factor);
#pragma unroll
  for (int n = 0; n < N; ++n) to[n] *= factor[n];
}
// What is kept (modifiers.cuh), of N values. Not held from the start to the end of a kernel: values
// from before the step are read once more, and what passes the cell by waits in memory.
template <int N, class E, class From, class V>
__device__ __forceinline__ void mix(const E* keep, const From* before, V (&now)[N]) {
  V share[N], old[N];
  load<N>(keep, share);
  load<N>(before, old);
#pragma unroll
  for (int n = 0; n < N; ++n) now[n] = mixed(share[n], rounded_product(share[n], old[n]), now[n]);
}
template <int N, class E, class V>
__device__ __forceinline__ void split_off(const E* keep, V (&gradient)[N], V* to) {
  V share[N];
  load<N>(keep, share);
#pragma unroll
  for (int n = 0; n < N; ++n) share[n] = split(share[n], gradient[n]);
  store<N>(share, to);
}

template <class S, class E, int N>
__global__ void __launch_bounds__(kBlockThreads)
    forward_cell(const __grid_constant__ ForwardSteps<E> steps) {
  using V = Sum<E>;
  using C = typename S::Whole;
  constexpr int kStates = C::states - 1, kUnitWeights = C::unit_weights;
  constexpr int kHanded = kAtLeastOne<(S::takes > S::gives ? S::takes : S::gives)>;
  static_assert(S::gives <= handed_of<C>, "the first stage hands on the most");
  const ForwardStep<E>& s = steps.direction[blockIdx.z];
  const Place at = place_of_thread<N>();
  const int64_t H = steps.H, row = at.row, unit = at.column;
  if (row >= s.rows) return;
  const auto save_of = [&](int slot) {
    return s.save + (row * C::saved + S::first_slot + slot) * steps.Hp + unit;
  };
  if (unit >= H) {  // what is kept has room for more units than there are
    const V zeros[kAtLeastOne<S::saved>][N] = {};
    if (s.save && unit < steps.Hp) store_slots<S::saved>(zeros, save_of);
    return;
  }

  V input[kAtLeastOne<S::inputs>][N], product[kAtLeastOne<S::products>][N];
#pragma unroll
  for (int slot = 0; slot < S::inputs; ++slot) {
    V bias[N];
    const int gate = S::first_gate + S::gate_of_input(slot);
    load<N>(s.gates + (row * C::inputs + gate) * H + unit, input[slot]);
    load_or_zero<N>(s.b_ih ? s.b_ih + gate * H + unit : nullptr, bias);
#pragma unroll
    for (int n = 0; n < N; ++n) input[slot][n] += bias[n];
  }
#pragma unroll
  for (int slot = 0; slot < S::products; ++slot) {
    V bias[N];
    const int gate = S::gate_of_product(slot), of_input = S::input_of_product(slot);
    load<N>(s.product + (row * S::products + gate) * H + unit, product[slot]);
    load_or_zero<N>(s.b_hh ? s.b_hh + (S::first_gate + gate) * H + unit : nullptr, bias);
#pragma unroll
    for (int n = 0; n < N; ++n)
      product[slot][n] += of_input < 0 ? bias[n] : bias[n] + input[of_input < 0 ? 0 : of_input][n];
  }
  const auto handed_at = [&](int slot) {
    return s.handed + (row * handed_of<C> + slot) * H + unit;
  };
  const auto state_at = [&](int i) { return s.state[i] + row * H + unit; };
  const auto before_at = [&](int i) {
    return stages_of<C> == 1 ? state_at(i) : s.before[i] + row * H + unit;
  };
  V h_prev[N], result[N], state[kAtLeastOne<kStates>][N], handed[kHanded][N];
  V weight[kAtLeastOne<kUnitWeights>][N], save[kAtLeastOne<S::saved>][N];
  constexpr bool kReadsH = S::has_carry || S::reads_h;
  if (kReadsH) load<N>(s.h + row * H + unit, h_prev);
  load_slots<kStates>(state, state_at);
  if constexpr (is_first<S> && !is_last<S>)
#pragma unroll
    for (int i = 0; i < kStates; ++i)
      if (s.before[i]) store<N>(state[i], before_at(i));
  load_slots<S::takes>(handed, handed_at);
  load_slots<kUnitWeights>(weight, [&](int i) { return s.w_unit + i * H + unit; });
  V step_input[kAtLeastOne<S::step_inputs>][N];
  load_step_inputs<S::step_inputs>(steps.step_inputs[blockIdx.z], at, step_input);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    Forward<S, V> of = {};
    take<S::products>(product, n, of.product);
#pragma unroll
    for (int i = 0; i < S::late; ++i) of.late[i] = input[S::inputs - S::late + i][n];
    if (kReadsH) of.h_prev = h_prev[n];
    take<kStates>(state, n, of.state);
    take<S::takes>(handed, n, of.handed);
    take<kUnitWeights>(weight, n, of.unit_weight);
    take<S::step_inputs>(step_input, n, of.step_input);
    S::template forward<DeviceMath<V>>(of);
    result[n] = of.result;
    put<kStates>(of.state, n, state);
    put<S::gives>(of.handed, n, handed);
    put<S::saved>(of.save, n, save);
  }
  if constexpr (is_last<S>) {
    if (s.keep[0]) mix<N>(s.keep[0].at(row) + unit, s.h + row * H + unit, result);
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      if (s.keep[1 + i]) mix<N>(s.keep[1 + i].at(row) + unit, before_at(i), state[i]);
      if (s.states[i]) store<N>(state[i], s.states[i] + row * steps.states_row + unit);
    }
    store<N>(result, s.h + row * H + unit);
    if (s.y) store<N>(result, s.y + row * s.y_row + unit);
  } else {
    if (s.factor) scale<N>(s.factor.at(row) + unit, result);
    store<N>(result, s.operand + row * H + unit);
  }
  store_slots<kStates>(state, state_at);
  store_slots<S::gives>(handed, handed_at);
  if (s.save) store_slots<S::saved>(save, save_of);
}

// At least two blocks of a multiprocessor, which leaves 128 registers to a thread. Told no number,
// ptxas aims at more of them, and spills for that.
template <class S, class E, int N>
__global__ void __launch_bounds__(kBlockThreads, 2)
    backward_cell(const __grid_constant__ BackwardSteps<E> steps) {
  using V = Sum<E>;
  using C = typename S::Whole;
  constexpr int kStates = C::states - 1, kUnitWeights = C::unit_weights;
  // What a later stage carried past the products stays where it is if a stage has nothing to add.
  constexpr bool kCarries = C::has_carry && (S::has_carry || is_last<S>);
  const BackwardStep<E>& s = steps.direction[blockIdx.z];
  const Place at = place_of_thread<N>();
  const int64_t H = steps.H, row = at.row, unit = at.column;
  if (row >= s.rows || unit >= H) return;

  const auto state_at = [&](int i) { return s.dstate[i] + row * H + unit; };
  const auto kept_at = [&](int i) { return s.kept[i] + row * H + unit; };
  const auto handed_at = [&](int slot) {
    return s.handed + (row * handed_back_of<C> + slot) * H + unit;
  };
  constexpr int kHanded =
      kAtLeastOne<(S::takes_back > S::gives_back ? S::takes_back : S::gives_back)>;
  V dresult[N], dy[N], carry[N] = {}, h[N], dstate[kAtLeastOne<kStates>][N], handed[kHanded][N];
  V save[kAtLeastOne<saved_read<S>>][N], weight[kAtLeastOne<kUnitWeights>][N];
  V grad[kAtLeastOne<S::grads>][N];
  load<N>(s.dresult + row * H + unit, dresult);
  load_or_zero<N>(s.grad_y ? s.grad_y + row * steps.y_row + unit : nullptr, dy);
  if (kCarries && !is_last<S>) load<N>(s.carry + row * H + unit, carry);
  load_slots<kStates>(dstate, state_at);
  load_slots<saved_read<S>>(save, [&](int slot) {
    return s.save + (row * C::saved + first_saved_read<S> + slot) * steps.Hp + unit;
  });
  load_slots<S::takes_back>(handed, handed_at);
  load_slots<kUnitWeights>(weight, [&](int i) { return s.w_unit + i * H + unit; });
  constexpr int kStepInputs = kAtLeastOne<S::step_inputs>;
  V step_input[kStepInputs][N], of_step_input[kStepInputs][N];
  load_step_inputs<S::step_inputs>(steps.step_inputs[blockIdx.z], at, step_input);
  if (S::backward_needs == Needs::h_prev || s.h_before) {
    load_before<N>(s.before, steps.y_row, H, row, unit, h);
    if (s.h_before && !s.factor) store<N>(h, s.h_before + row * H + unit);
    if (s.h_before && s.factor) {
      V operand[N];
      load<N>(s.factor.at(row) + unit, operand);
#pragma unroll
      for (int n = 0; n < N; ++n) operand[n] *= h[n];
      store<N>(operand, s.h_before + row * H + unit);
    }
  }
  if (S::backward_needs == Needs::h) {
    load<N>(s.y + row * steps.y_row + unit, h);
    if (s.keep[0]) {
      V share[N], before[N];
      load<N>(s.keep[0].at(row) + unit, share);
      load_before<N>(s.before, steps.y_row, H, row, unit, before);
#pragma unroll
      for (int n = 0; n < N; ++n) h[n] = unmixed<E>(share[n], before[n], h[n]);
    }
  }
#pragma unroll
  for (int n = 0; n < N; ++n) dresult[n] += dy[n];
  if constexpr (is_last<S>) {
    if (s.keep[0]) split_off<N>(s.keep[0].at(row) + unit, dresult, s.carry + row * H + unit);
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      if (s.grad_states[i]) add<N>(s.grad_states[i] + row * steps.states_row + unit, dstate[i]);
      if (s.keep[1 + i]) split_off<N>(s.keep[1 + i].at(row) + unit, dstate[i], kept_at(i));
    }
  } else {
    if (s.factor) scale<N>(s.factor.at(row) + unit, dresult);
  }
#pragma unroll
  for (int n = 0; n < N; ++n) {
    Backward<S, V> of = {};
    take<saved_read<S>>(save, n, of.save);
    take<S::takes_back>(handed, n, of.handed);
    take<kUnitWeights>(weight, n, of.unit_weight);
    take<S::step_inputs>(step_input, n, of.step_input);
    if (S::backward_needs != Needs::nothing) of.h = h[n];
    of.dresult = dresult[n];
    take<kStates>(dstate, n, of.dstate);
    of.carry = carry[n];
    S::template backward<DeviceMath<V>>(of);
    put<kStates>(of.dstate, n, dstate);
    carry[n] = of.carry;
    if (S::restores) h[n] = of.result;
    put<S::gives_back>(of.handed, n, handed);
    put<S::grads>(of.grad, n, grad);
    put<S::step_inputs>(of.of_step_input, n, of_step_input);
  }
  store_slots<S::grads>(grad, [&](int slot) {
    return s.grads + (row * C::grads + S::template column_of_grad<S>(slot)) * H + unit;
  });
  store_slots<S::gives_back>(handed, handed_at);
  if constexpr (S::of_step_inputs != 0) {
    const StepInputValues<E>& to = steps.of_step_inputs[blockIdx.z];
#pragma unroll
    for (int i = 0; i < S::step_inputs; ++i)
      if (to && S::of_step_inputs >> i & 1) store<N>(of_step_input[i], to.at(row, i) + unit);
  }
  if constexpr (is_first<S>)
#pragma unroll
    for (int i = 0; i < kStates; ++i)
      if (s.keep[1 + i]) add<N>(kept_at(i), dstate[i]);
  store_slots<kStates>(dstate, state_at);
  const bool keeps = is_last<S> && s.keep[0];
  if (keeps) add<N>(s.carry + row * H + unit, carry);
  if (kCarries || keeps) store<N>(carry, s.carry + row * H + unit);
  if (S::restores && s.result) {
    if (!is_last<S> && s.factor) scale<N>(s.factor.at(row) + unit, h);
    store<N>(h, s.result + row * H + unit);
  }
}

}  // namespace fusedrnn::cuda
