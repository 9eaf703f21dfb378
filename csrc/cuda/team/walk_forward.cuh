// The forward walk of a team. Per step of a block, for each group of 8 or 16 of its units and each
// 8 sequences:
//
//   h of all units (from everyone's last step) times the group's rows of W_hh  -> sums in registers
//   sums + projected input + biases -> activations -> states, h    (states stay in their thread)
//   h of the own units -> the next operand, here and in the other blocks
//   y and what backward needs -> memory, while h is on its way
//
// Modifiers act on the states in shared memory before and after a cell, which then knows nothing of
// them, and none of its registers wait for them:
//
//   before   states of the own units: replaced where the walk crosses a boundary
//            keep * state: to memory
//   after    states are mixed with that
//            h of the own units: put into the next operand again, as the next step has it
//
// A group whose product is cut along k has as many warps. They exchange their sums, and two of them
// share the cells: each adds the parts, in order, for every second sequence.
#pragma once

#include "cells/cell.h"
#include "walk.cuh"

namespace fusedrnn::cuda {

template <class C, class A, class Team>
class ForwardWalker : Walker<ForwardWalk<typename A::E>, Team> {
  using E = typename A::E;
  using Base = Walker<ForwardWalk<E>, Team>;
  using Base::sequences_, Base::first_unit_, Base::index, Base::note, Base::is_modified;
  using Base::w_, Base::z_, Base::seat_, Base::d_, Base::shared_, Base::team_;
  using typename Base::Direction;
  static constexpr int kHalves = walked<C>.halves(), kTiles = walked<C>.tiles();
  static constexpr int kUnits = 8 * kHalves;  // of a group
  static constexpr int kSaved = kAtLeastOne<C::saved>;
  static constexpr int kStates = C::states - 1;                         // except h
  static constexpr int kFirstWeight = walked<C>.biases();               // after them
  static constexpr int kHeld = held_forward(walked<C>, A::arithmetic);  // along the depth
  using Held = HeldWeights<A, kTiles, kHeld>;

 public:
  __device__ __forceinline__ ForwardWalker(const ForwardWalk<E>& walk, char* shared)
      : Base(walk, shared), part_(seat_.warp / z_.leaders), first_group_(seat_.warp % z_.leaders) {}

  __device__ __forceinline__ void run() {
    Held held;
    Base::template with_pairs<A>([&](auto pairs) { load_weights<pairs.value>(held); });
    load_biases();
    Steps steps;
    steps.begin = d_.begin, steps.backwards = seat_.direction == 1;
    steps.end = sequences_.end_of(d_.begin, d_.end);
    const int count = steps.count();
    load_states();
    if (is_modified() && count > 0) modify_first(steps.at(0));
    team_.begin();

    Inputs inputs;
    Results results;
    for (int s = 0; s < count; ++s) {
      const bool last = s + 1 == count;
      char* const operand = shared_ + (s & 1) * z_.operand;
      char* const next = shared_ + (~s & 1) * z_.operand;
      const Moment now = sequences_.moment(steps.at(s));
      if (is_modified()) prepare(steps, s);
      if (works()) load_inputs(now, 0, 0, inputs);
      if (s > 0) team_.wait_for_published(s - 1);
#pragma unroll 1
      for (int turn = 0; turn < z_.turns; ++turn) {
#pragma unroll 1
        for (int column = 0; column < z_.columns; ++column) {
          if (group(turn) >= z_.groups) continue;
          if (turn + column > 0 && works()) load_inputs(now, turn, column, inputs);
          float sum[kTiles][4];
          multiply(held, operand, turn, column, sum);
          if (z_.parts > 1) add_parts(((s & 1) * z_.columns + column) & 1, sum);
          if (!works()) continue;
          if (turn + column > 0) store(now, results);
          update(now, turn, column, inputs, sum, next, results);
          if (is_modified()) finish(now, turn, column, last, next);
        }
      }
      if (!last)
        team_.publish(s, next + slice_offset(), slice_bytes(), z_.columns, z_.column_bytes);
      if (works()) store(now, results);
    }
    store_states();
    team_.end();
  }

 private:
  // What the input projection says of the units of a lane: [half][column of two][slot].
  struct Inputs {
    float value[kHalves][2][kAtLeastOne<C::inputs>];
  };
  // What a lane has computed and not stored yet; h is with the states.
  struct Results {
    Pair<E> save[kHalves][kSaved];
    int turn = 0, column = 0;
  };

  // Whether this warp computes cells, and those of the even or the odd sequences.
  __device__ __forceinline__ bool works() const { return part_ < (z_.parts > 1 ? 2 : 1); }
  __device__ __forceinline__ bool mine(int j) const { return z_.parts == 1 || part_ == j; }
  __device__ __forceinline__ int group(int turn) const { return first_group_ + turn * z_.leaders; }
  // A lane's unit in the first half of a group, as a column of W_hh.
  __device__ __forceinline__ int unit_of(int turn) const {
    return first_unit_ + group(turn) * kUnits + seat_.group;
  }
  // A lane's sequence among the team's.
  __device__ __forceinline__ int sequence(int column, int j) const {
    return column * kColumns + 2 * seat_.t4 + j;
  }
  // One of a lane's own states, among those of all threads; 0 is h.
  __device__ __forceinline__ float& state(int turn, int column, int half, int j, int kind) const {
    const int index = (((turn * z_.columns + column) * kHalves + half) * 2 + j) * C::states;
    float* const all = reinterpret_cast<float*>(shared_ + z_.state);
    return all[((index + kind) * z_.leaders + first_group_) * kLanes + seat_.lane];
  }
  // [products][units], then the late inputs', then the unit weights
  __device__ __forceinline__ float* biases() const {
    return reinterpret_cast<float*>(shared_ + z_.biases);
  }
  __device__ __forceinline__ int held_depth() const { return z_.depth < kHeld ? z_.depth : kHeld; }
  __device__ __forceinline__ char* stored_weights() const {
    return shared_ + z_.fragments + seat_.warp * z_.fragments_of_warp * kFragmentBytes;
  }
  __device__ __forceinline__ int depth_of_part() const {
    const int left = z_.depth - part_ * z_.part_depth;
    return left < z_.part_depth ? left : z_.part_depth;
  }
  __device__ __forceinline__ int slice_bytes() const {  // of 8 sequences
    return z_.units / A::kPerCore * kCoreBytes;
  }
  __device__ __forceinline__ int slice_offset() const {
    return first_unit_ / A::kPerCore * kCoreBytes;
  }

  template <bool kPairs>
  __device__ __forceinline__ void load_weights(Held& held) const {
    char* stored = stored_weights();
    for (int turn = 0; turn < z_.turns; ++turn) {
      const int first = first_unit_ + group(turn) * kUnits;
      const int end = group(turn) < z_.groups ? w_.H : 0;  // of the units that there are
      const auto fetch = [&](int k, int tile) {
        const int from = (part_ * z_.part_depth + k) * A::kDepth;
        return A::template fetch<false, kPairs>(d_.w_hh, [&](int row, int column) {
          const int eight = tile * 2 + row / 8;  // 8 rows: one gate of 8 units
          const int unit = first + eight / C::products * 8 + row % 8;
          const int gate = C::gate_of_product(eight % C::products);
          const bool there = unit < end && from + column < w_.H;
          return there ? (gate * w_.H + unit) * w_.H + from + column : -1;
        });
      };
      if (turn == 0)
        stored = held.template load<false, true>(fetch, stored, depth_of_part(), kTiles);
      else
        stored = held.template load<false, false>(fetch, stored, z_.depth, kTiles);
    }
  }

  __device__ __forceinline__ void load_biases() const {
    const int count = (kFirstWeight + C::unit_weights) * z_.units;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      const int slot = i / z_.units, unit = first_unit_ + i % z_.units;
      biases()[i] = unit >= w_.H           ? 0.0f
                    : slot >= kFirstWeight ? widen(d_.w_unit[(slot - kFirstWeight) * w_.H + unit])
                                           : bias_of(slot, unit);
    }
  }
  __device__ __forceinline__ float bias_of(int slot, int unit) const {
    const bool late = slot >= C::products;
    const int of_input =
        late ? C::inputs - C::late + slot - C::products : C::input_of_product(slot);
    float bias = 0;
    if (d_.b_ih && of_input >= 0) bias += widen(d_.b_ih[C::gate_of_input(of_input) * w_.H + unit]);
    if (d_.b_hh && !late) bias += widen(d_.b_hh[C::gate_of_product(slot) * w_.H + unit]);
    return bias;
  }

  // h of all units to the first operand; the own units' states to where their threads keep them.
  __device__ __forceinline__ void load_states() const {
    const int padded = z_.blocks * z_.units, count = padded * z_.rows;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      const int unit = i % padded, row = i / padded;
      char* const operand = shared_ + row / kColumns * z_.column_bytes;
      A::put(operand, unit, row % kColumns, given(d_.h_in, row, unit));
    }
    for_states([&](int row, int unit, const auto& state_of) {
      state_of(0) = given(d_.h_in, row, unit);
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        const auto& from = d_.state[i];
        state_of(1 + i) = w_.first           ? given(from.in, row, unit)
                          : there(row, unit) ? from.between[index(row, unit)]
                                             : 0.0f;
      }
    });
  }
  __device__ __forceinline__ void store_states() const {
    for_states([&](int row, int unit, const auto& state_of) {
      if (!there(row, unit)) return;
      narrow(state_of(0), d_.h_out[index(row, unit)]);
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        const auto& to = d_.state[i];
        if (w_.last)
          narrow(state_of(1 + i), to.out[index(row, unit)]);
        else
          to.between[index(row, unit)] = state_of(1 + i);
      }
    });
  }
  __device__ __forceinline__ bool there(int row, int unit) const {
    return row < sequences_.count && unit < w_.H;
  }
  __device__ __forceinline__ float given(const E* states, int row, int unit) const {
    return states && there(row, unit) ? widen(states[index(row, unit)]) : 0.0f;
  }
  // f(sequence, unit, state_of) for the units of this thread; state_of(0) is h.
  template <class F>
  __device__ __forceinline__ void for_states(const F& f) const {
    if (!works()) return;
    for (int turn = 0; turn < z_.turns; ++turn)
      for (int column = 0; column < z_.columns; ++column)
#pragma unroll
        for (int half = 0; half < kHalves; ++half)
#pragma unroll
          for (int j = 0; j < 2; ++j)
            if (group(turn) < z_.groups && mine(j))
              f(sequence(column, j), unit_of(turn) + half * 8,
                [&](int kind) -> float& { return state(turn, column, half, j, kind); });
  }

  // f(sequence, unit, state_of, j) for the units of a group that are this thread's.
  template <class F>
  __device__ __forceinline__ void for_cells(int turn, int column, const F& f) const {
    turn = ptx::computed_here(turn), column = ptx::computed_here(column);
#pragma unroll 1
    for (int i = 0; i < 2 * kHalves; ++i) {
      const int half = i / 2, j = i % 2, unit = unit_of(turn) + half * 8;
      if (mine(j) && there(sequence(column, j), unit))
        f(
            sequence(column, j), unit,
            [&](int kind) -> float& { return state(turn, column, half, j, kind); }, j);
    }
  }
  // Before the product: the states that the cell begins with, and notes for after it, so that
  // nothing far away is waited for there.
  __device__ __forceinline__ void prepare(const Steps& steps, int s) const {
    if (!works()) return;
#pragma unroll 1
    for (int turn = 0; turn < z_.turns && group(turn) < z_.groups; ++turn)
#pragma unroll 1
      for (int column = 0; column < z_.columns; ++column) prepare(steps, s, turn, column);
  }
  __device__ __forceinline__ void prepare(const Steps& steps, int s, int turn, int column) const {
    s = ptx::computed_here(s);
    const int t = steps.at(s), next_t = steps.at(s + 1), alive = sequences_.moment(t).alive;
    const int next_alive = s + 1 < steps.count() ? sequences_.moment(next_t).alive : 0;
    for_cells(turn, column, [&](int b, int unit, const auto& state_of, int) {
      const Direction& d = this->direction_here();
      const int boundary = b < alive ? this->boundary(d, t, b) : -1;
#pragma unroll
      for (int i = 0; i < C::states; ++i) {
        float& before = state_of(i);
        if (boundary >= 0) before = this->reset_state(d, i, boundary, b, unit);
        const auto& keep = d.modifiers.keep[i];
        if (!keep) continue;
        const float share = b < alive ? this->value(keep, t, b, unit) : 0.0f;
        note(d, b, unit, kShare + i) = share;
        note(d, b, unit, kKept + i) = b < alive ? rounded_product(share, before) : 0.0f;
      }
      if (s + 1 == steps.count()) return;
      const bool goes_on = b < next_alive;
      const int next_boundary = goes_on ? this->boundary(d, next_t, b) : -1;
      const float factor = goes_on ? factor_of(d, next_t, b, unit) : 1.0f;
      note(d, b, unit, kFactor) = factor;
      note(d, b, unit, kIsReplaced) = next_boundary < 0 ? 0.0f : 1.0f;
      if (next_boundary >= 0)
        note(d, b, unit, kReplacement) = factor * this->reset_state(d, 0, next_boundary, b, unit);
    });
  }
  // After the cell: the states after the step, and h in the next operand as the next step has it.
  __device__ __forceinline__ void finish(const Moment& at, int turn, int column, bool last,
                                         char* next) const {
    for_cells(turn, column, [&](int b, int unit, const auto& state_of, int j) {
      const Direction& d = this->direction_here();
#pragma unroll
      for (int i = 0; i < C::states; ++i) {
        float& now = state_of(i);
        if (d.modifiers.keep[i])
          now = mixed(note(d, b, unit, kShare + i), note(d, b, unit, kKept + i), now);
        if (i == 0) now = widen(narrowed<E>(now));
        E* const all = i > 0 && b < at.alive ? d.state[i > 0 ? i - 1 : 0].all : nullptr;
        if (all) narrow(now, all[static_cast<int64_t>(at.row + b) * w_.y_row + unit]);
      }
      if (last) return;
      float operand = state_of(0) * note(d, b, unit, kFactor);
      if (note(d, b, unit, kIsReplaced) != 0) operand = note(d, b, unit, kReplacement);
      A::put(next + column * z_.column_bytes, unit, 2 * seat_.t4 + j, operand);
    });
  }
  static constexpr int kFactor = 0, kIsReplaced = 1, kReplacement = 2;  // of the next operand
  static constexpr int kShare = 3, kKept = kShare + C::states;          // of each state
  __device__ __forceinline__ float factor_of(const Direction& d, int t, int b, int unit) const {
    const auto& factor = d.modifiers.recurrent_factor;
    return factor ? this->value(factor, t, b, unit) : 1.0f;
  }

  // The first operand, in which load_states put h: each thread has the same places as there.
  __device__ __forceinline__ void modify_first(int t) const {
    const Direction& d = this->direction_here();
    if (!d.modifiers.reset && !d.modifiers.recurrent_factor) return;
    const int padded = z_.blocks * z_.units, count = padded * sequences_.moment(t).alive;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      const int unit = i % padded, row = i / padded;
      char* const operand = shared_ + row / kColumns * z_.column_bytes;
      if (unit >= w_.H) continue;
      const int boundary = this->boundary(d, t, row);
      const float h =
          boundary < 0 ? given(d.h_in, row, unit) : this->reset_state(d, 0, boundary, row, unit);
      A::put(operand, unit, row % kColumns, h * factor_of(d, t, row, unit));
    }
  }

  __device__ __forceinline__ void load_inputs(const Moment& at, int turn, int column,
                                              Inputs& inputs) const {
    const int first = unit_of(turn), width = C::inputs * w_.H;
    const float* const gates =
        d_.gates + static_cast<int64_t>(at.row - d_.first_row) * width + first;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int b = sequence(column, j);
      if (!mine(j)) continue;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const bool there = b < at.alive && first + half * 8 < w_.H;
#pragma unroll
        for (int slot = 0; slot < C::inputs; ++slot)
          inputs.value[half][j][slot] =
              there ? gates[b * width + C::gate_of_input(slot) * w_.H + half * 8] : 0.0f;
      }
    }
  }

  __device__ __forceinline__ void multiply(const Held& held, const char* operand, int turn,
                                           int column, float (&sum)[kTiles][4]) const {
    const char* const from =
        operand + column * z_.column_bytes + part_ * z_.part_depth * 2 * kCoreBytes;
    if (turn == 0)
      return held.template multiply<true>(sum, stored_weights(), from, depth_of_part(), kTiles);
    const int before = (turn * z_.depth - held_depth()) * kTiles;
    held.template multiply<false>(sum, stored_weights() + before * kFragmentBytes, from, z_.depth,
                                  kTiles);
  }

  // The sums of a group's parts, added in order, for the sequences that are this warp's.
  __device__ __forceinline__ void add_parts(int turn, float (&sum)[kTiles][4]) const {
    float2* const all = reinterpret_cast<float2*>(shared_ + z_.sums);
    const auto of_part = [&](int part, int tile, int j) -> float2& {
      const int place = (turn * z_.parts + part) * z_.groups + first_group_;
      return all[((place * kTiles + tile) * 2 + j) * kLanes + seat_.lane];
    };
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int j = 0; j < 2; ++j) of_part(part_, tile, j) = {sum[tile][j], sum[tile][2 + j]};
    ptx::barrier(1 + static_cast<unsigned>(first_group_), static_cast<unsigned>(z_.parts) * kLanes);
    if (!works()) return;
    part_ == 0 ? add_parts_of<0>(of_part, sum) : add_parts_of<1>(of_part, sum);
  }
  template <int j, class OfPart>
  __device__ __forceinline__ void add_parts_of(const OfPart& of_part,
                                               float (&sum)[kTiles][4]) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) sum[tile][j] = sum[tile][2 + j] = 0;
#pragma unroll 1
    for (int part = 0; part < z_.parts; ++part) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const float2 both = of_part(part, tile, j);
        sum[tile][j] += both.x, sum[tile][2 + j] += both.y;
      }
    }
  }

  // The cell of a lane's units, from the sums of its group.
  __device__ __forceinline__ void update(const Moment& at, int turn, int column,
                                         const Inputs& inputs, const float (&sum)[kTiles][4],
                                         char* next, Results& results) const {
    results.turn = turn, results.column = column;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const int unit = unit_of(turn) + half * 8;
      const float* const bias = biases() + unit - first_unit_;
      E save[kSaved][2] = {};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (!mine(j)) continue;
        const float* const input = inputs.value[half][j];
        Forward<C, float> of = {};
#pragma unroll
        for (int slot = 0; slot < C::products; ++slot) {
          const int eight = half * C::products + slot, of_input = C::input_of_product(slot);
          of.product[slot] = sum[eight / 2][eight % 2 * 2 + j] + bias[slot * z_.units];
          if (of_input >= 0) of.product[slot] += input[of_input < 0 ? 0 : of_input];
        }
#pragma unroll
        for (int i = 0; i < C::late; ++i)
          of.late[i] = input[C::inputs - C::late + i] + bias[(C::products + i) * z_.units];
#pragma unroll
        for (int i = 0; i < C::unit_weights; ++i)
          of.unit_weight[i] = bias[(kFirstWeight + i) * z_.units];
        const float h_before = state(turn, column, half, j, 0);
        float before[kAtLeastOne<kStates>];
#pragma unroll
        for (int i = 0; i < kStates; ++i)
          of.state[i] = before[i] = state(turn, column, half, j, 1 + i);
        of.h_prev = h_before;
        C::template forward<DeviceMath<float>>(of);
        const bool exists = unit < w_.H, alive = sequence(column, j) < at.alive;
        float h = widen(narrowed<E>(of.result));  // the next step sees what the caller sees
        h = !alive ? h_before : exists ? h : 0.0f;
        state(turn, column, half, j, 0) = h;
#pragma unroll
        for (int i = 0; i < kStates; ++i)
          state(turn, column, half, j, 1 + i) = !alive ? before[i] : exists ? of.state[i] : 0.0f;
        A::put(next + column * z_.column_bytes, unit, 2 * seat_.t4 + j, h);
#pragma unroll
        for (int slot = 0; slot < kSaved; ++slot)
          save[slot][j] = narrowed<E>(C::saved && exists ? of.save[slot] : 0.0f);
      }
#pragma unroll
      for (int slot = 0; slot < kSaved; ++slot)
        results.save[half][slot].set(save[slot][0], save[slot][1]);
    }
  }

  __device__ __forceinline__ void store(const Moment& at, const Results& results) const {
    const int first = unit_of(results.turn), width = C::saved * w_.Hp;
    E* const y = d_.y + static_cast<int64_t>(at.row) * w_.y_row + first;
    E* const save = d_.save ? d_.save + static_cast<int64_t>(at.row) * width + first : nullptr;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int b = sequence(results.column, j);
      if (!mine(j) || b >= at.alive) continue;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const int unit = first + half * 8;
        const float h = state(results.turn, results.column, half, j, 0);
        if (unit < w_.H) y[b * w_.y_row + half * 8] = narrowed<E>(h);
        if (!save || unit >= w_.Hp) continue;
#pragma unroll
        for (int slot = 0; slot < kSaved; ++slot)
          save[b * width + slot * w_.Hp + half * 8] = results.save[half][slot].get(j);
      }
    }
  }

  const int part_, first_group_;
};

template <class C, class A, class Team>
__global__ void __launch_bounds__(kMostThreads, 1)
    walk_forward(const __grid_constant__ ForwardWalk<typename A::E> walk) {
  FUSEDRNN_DYNAMIC_SHARED(char, shared);
  if constexpr (kRunsHere<A, Team>)
    ForwardWalker<C, A, Team>(walk, shared).run();
  else
    __trap();
}

}  // namespace fusedrnn::cuda
