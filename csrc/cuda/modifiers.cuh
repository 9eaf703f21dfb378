// Modifiers (layer/problem.h) as kernels have them, and what they do to a value. A null pointer is
// off; all values are on the device.
//
//   forward    before  = crosses a boundary ? reset state : state of the step before
//              operand = factor * before,  rounded to the storage type: what W_hh multiplies
//              after   = keep * before + (1 - keep) * what the cell gives
//
//   backward   keep * gradient passes the cell by, and the rest goes through it
//              gradient of before = factor * (dgates W_hh) + what passes by
//              where a boundary is crossed, that is the reset state's, and the step before gets 0
#pragma once

#include "types.cuh"

namespace fusedrnn::cuda {

// Values of one step and direction, for each sequence.
template <class T>
struct StepValues {
  T* data = nullptr;
  int64_t row = 0;

  __host__ __device__ explicit operator bool() const { return data != nullptr; }
  __device__ __forceinline__ T* at(int64_t b) const { return data + b * row; }
};

// Step inputs of one step and direction, or their gradients (layer/problem.h): for each sequence a
// row of each.
template <class T>
struct StepInputValues : StepValues<T> {
  int64_t kind = 0, unit = 1;

  __device__ __forceinline__ T* at(int64_t b, int i) const {
    return StepValues<T>::at(b) + i * kind;
  }
  // N units of the i-th one from `column` on.
  template <int N, class V>
  __device__ __forceinline__ void load_units(int64_t b, int i, int64_t column, V (&to)[N]) const {
    if (unit) return load<N>(at(b, i) + column, to);
    const V shared = widen(*at(b, i));
#pragma unroll
    for (int n = 0; n < N; ++n) to[n] = shared;
  }
};

// Values of all steps of a direction, for each sequence.
template <class T>
struct WalkValues {
  T* data = nullptr;
  int64_t step = 0, row = 0;

  __host__ __device__ explicit operator bool() const { return data != nullptr; }
  __device__ __forceinline__ T* at(int64_t t, int64_t b) const { return data + t * step + b * row; }
  StepValues<T> of_step(int64_t t) const {
    if (!data) return {};
    return {data + t * step, row};
  }
};

// The boundary that a direction crosses on its way to a step, and the states it goes on from.
template <class E>
struct Boundary {
  StepValues<const uint8_t> flags;
  int64_t rows = 0;                        // sequences that have the step after the boundary
  StepValues<const E> states[kMaxStates];  // null: zeros

  __device__ __forceinline__ bool is_before(int64_t row) const {
    return flags && row < rows && *flags.at(row);
  }
  // Those of a state with N columns from `column` on.
  template <int N, class V>
  __device__ __forceinline__ void load_state(int i, int64_t row, int64_t column, V (&to)[N]) const {
    load_or_zero<N>(states[i] ? states[i].at(row) + column : nullptr, to);
  }
};

// Modifiers of a direction.
template <class E>
struct DirectionModifiers {
  int ahead = 0;  // 1 in reverse: a boundary is between a step and the one after it in t
  WalkValues<const uint8_t> reset;
  WalkValues<const E> reset_states[kMaxStates];
  WalkValues<const E> recurrent_factor;
  WalkValues<const E> keep[kMaxStates];
};

// A state after a step, from the part that is kept: rounded_product(keep, before). If the cell
// gives 0, it is exactly that.
template <class V>
__device__ __forceinline__ V mixed(V keep, V kept, V now) {
  return DeviceMath<V>::multiply_add(1 - keep, now, kept);
}
// What the cell gave, from the state after the step, as it is stored. 0 of a cell is 0 again.
template <class E, class V>
__device__ __forceinline__ V unmixed(V keep, V before, V after) {
  const V kept = rounded_product(keep, before);
  if (keep == 1 || widen(narrowed<E>(kept)) == after) return 0;
  return (after - kept) / (1 - keep);
}
// The part of a gradient that passes the cell by; `gradient` becomes what goes through it.
template <class V>
__device__ __forceinline__ V split(V keep, V& gradient) {
  const V kept = keep * gradient;
  gradient -= kept;
  return kept;
}

}  // namespace fusedrnn::cuda
