// Where the passes of a program (cells/generate.h) find their operands, and leave their results, in
// the kernels: `At` of the generated text. A source that is made at run time (program_source.h)
// includes this, and the header of its kernels.
#pragma once

#include "cells/cell.h"

namespace fusedrnn::cuda {

template <class S, class V>
struct ForwardPass {
  Forward<S, V>& unit;

  __device__ __forceinline__ V product(int slot) const { return unit.product[slot]; }
  __device__ __forceinline__ V late(int i) const { return unit.late[i]; }
  __device__ __forceinline__ V h() const { return unit.h_prev; }
  __device__ __forceinline__ V state(int i) const { return unit.state[i]; }
  __device__ __forceinline__ V handed(int i) const { return unit.handed[i]; }
  __device__ __forceinline__ V weight(int i) const { return unit.unit_weight[i]; }
  __device__ __forceinline__ V step_input(int i) const { return unit.step_input[i]; }

  __device__ __forceinline__ void set_saved(int slot, V value) const { unit.save[slot] = value; }
  __device__ __forceinline__ void set_state(int i, V value) const { unit.state[i] = value; }
  __device__ __forceinline__ void set_handed(int i, V value) const { unit.handed[i] = value; }
  __device__ __forceinline__ void set_result(V value) const { unit.result = value; }
};

template <class S, class V>
struct BackwardPass {
  Backward<S, V>& unit;

  __device__ __forceinline__ V saved(int slot) const { return unit.save[slot]; }
  __device__ __forceinline__ V h() const { return unit.h; }
  __device__ __forceinline__ V state(int i) const { return unit.dstate[i]; }
  __device__ __forceinline__ V handed(int i) const { return unit.handed[i]; }
  __device__ __forceinline__ V weight(int i) const { return unit.unit_weight[i]; }
  __device__ __forceinline__ V step_input(int i) const { return unit.step_input[i]; }
  __device__ __forceinline__ V of_result() const { return unit.dresult; }
  __device__ __forceinline__ V carry() const { return unit.carry; }

  // `slot` is one of the cell's.
  __device__ __forceinline__ void set_gradient(int slot, V value) const {
    unit.grad[S::own_grad(slot)] = value;
  }
  __device__ __forceinline__ void set_of_step_input(int i, V value) const {
    unit.of_step_input[i] = value;
  }
  __device__ __forceinline__ void set_state(int i, V value) const { unit.dstate[i] = value; }
  __device__ __forceinline__ void set_handed(int i, V value) const { unit.handed[i] = value; }
  __device__ __forceinline__ void set_carry(V value) const { unit.carry = value; }
  __device__ __forceinline__ void set_result(V value) const { unit.result = value; }
};

}  // namespace fusedrnn::cuda
