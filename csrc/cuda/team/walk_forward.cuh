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
//
// A kernel that is compiled for its team's sizes (Fixed) has no modifiers, and its loops unroll.
// Its states and biases stay in registers. In a cluster h leaves from there, too, to all blocks and
// the own: no barrier of the block is in the way, and a step waits for nothing but the mbarrier.
#pragma once

#include "cells/cell.h"
#include "walk.cuh"

namespace fusedrnn::cuda {

template <class C, class A, class Sizes>
struct SizesForward {  // as the launch tells them
  static constexpr bool kFixed = false;
  static constexpr int kColumns = 1, kParts = 0;
  static constexpr bool kWhole = false;
  static constexpr int kHeld = held_forward(walked<C>, A::arithmetic);
  __device__ __forceinline__ explicit SizesForward(const ForwardSizes& told) : z_(told) {}
  const ForwardSizes& z_;
};
template <class C, class A, int kBlocks, int kUnits, int kRows>
struct SizesForward<C, A, Fixed<kBlocks, kUnits, kRows>> {
  static constexpr ForwardSizes z_ =
      forward_sizes(walked<C>, A::arithmetic, Fixed<kBlocks, kUnits, kRows>::team);
  static constexpr bool kFixed = true;
  static constexpr int kColumns = z_.columns, kParts = z_.parts, kHeld = z_.held;
  static constexpr int kSums = fixed_sums(z_.parts);
  static constexpr bool kWhole = z_.parts * z_.part_depth == z_.depth;
  static_assert(z_.turns == 1, "states are in registers");
  __device__ __forceinline__ explicit SizesForward(const ForwardSizes&) {}
};

template <class C, class A, class Team, class Sizes>
class ForwardWalker : Walker<ForwardWalk<typename A::E>, Team, SizesForward<C, A, Sizes>> {
  using E = typename A::E;
  using Known = SizesForward<C, A, Sizes>;
  using Base = Walker<ForwardWalk<E>, Team, Known>;
  using Base::H, Base::Hp, Base::is_unit, Base::lane_of, Base::place_of, Base::from_lane;
  using Base::sequences_, Base::first_unit_, Base::index, Base::note, Base::is_modified;
  using Base::w_, Base::z_, Base::seat_, Base::d_, Base::shared_, Base::team_;
  using typename Base::Direction;
  static constexpr int kHalves = walked<C>.halves(), kTiles = walked<C>.tiles();
  static constexpr int kUnits = 8 * kHalves;  // of a group
  static constexpr int kSaved = kAtLeastOne<C::saved>;
  static constexpr int kStates = C::states - 1;            // except h
  static constexpr int kFirstWeight = walked<C>.biases();  // after them
  static constexpr int kOwn = kFirstWeight + C::unit_weights;
  static constexpr bool kFixed = Sizes::fixed;
  static constexpr bool kSends = kFixed && Team::kind == CudaTeam::cluster;  // h from registers
  // Cells of a lane in 8 units by 8 sequences: where parts are known to share them, one.
  static constexpr int kCells = Known::kParts > 1 ? 1 : 2;
  static constexpr int kHeld = Known::kHeld;  // along the depth
  using Held = HeldWeights<A, kTiles, kHeld>;
  using Math = typename A::Math;
  static constexpr bool kWhole = Known::kWhole;  // parts have no depth beyond the units

 public:
  __device__ __forceinline__ ForwardWalker(const ForwardWalk<E>& walk, char* shared)
      : Base(walk, shared), part_(seat_.warp / z_.leaders), first_group_(seat_.warp % z_.leaders) {}

  __device__ __forceinline__ void run() {
    Held held;
    Base::template with_pairs<A>([&](auto pairs) { load_weights<pairs.value>(held); });
    Steps steps;
    steps.begin = d_.begin, steps.backwards = seat_.direction == 1;
    steps.end = sequences_.end_of(d_.begin, d_.end);
    const int count = steps.count();
    load_own();
    load_states();
    if constexpr (!kFixed)
      if (is_modified() && count > 0) modify_first(steps.at(0));
    team_.begin();
    if constexpr (kFixed)
      walk_fixed(held, steps, count);
    else
      walk(held, steps, count);
    store_states();
    team_.end();
  }

 private:
  // What the input projection says of the units of a lane: [half][cell][slot].
  struct Inputs {
    float value[kHalves][kCells][kAtLeastOne<C::inputs>];
  };
  // What a lane has computed and not stored yet; h is with the states.
  struct Results {
    Pair<E> save[kHalves][kSaved];
    int turn = 0, column = 0;
  };

  __device__ __forceinline__ void walk(const Held& held, const Steps& steps, int count) {
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
          if (turn + column > 0) store(now, results.turn, results.column, results);
          update(now, turn, column, inputs, sum, next, results);
          if (is_modified()) finish(now, turn, column, last, next);
        }
      }
      if (!last) team_.publish(s, next + slice_offset(), z_.slice, z_.columns, z_.column_bytes);
      if (works()) store(now, results.turn, results.column, results);
    }
  }

  // The walk of a kernel that knows its sizes. What a step reads from memory is asked for as soon
  // as the step before has sent h, and arrives while h travels.
  __device__ __forceinline__ void walk_fixed(const Held& held, const Steps& steps, int count) {
    constexpr int kColumns = Known::kColumns;
    Inputs inputs[kColumns];
    Results results[kColumns];
    const int first = first_sequence();
    gates_ = place_of(d_.gates, first - d_.first_row, C::inputs * H(), unit_of(0));
    y_ = place_of(d_.y, first, w_.y_row, unit_of(0));
    save_ = place_of(d_.save, first, C::saved * Hp(), unit_of(0));
    Moment now = moment(steps, 0), then = moment(steps, 1);
    if (count > 0 && works()) load_inputs(now, inputs);
#pragma unroll 1
    for (int s = 0; s < count; ++s) {
      const bool last = s + 1 == count;
      const char* const operand = shared_ + (s & 1) * z_.operand;
      char* const next = shared_ + (~s & 1) * z_.operand;
      if (s > 0) team_.wait_for_published(s - 1);
      float sum[kColumns][kTiles][4];
      held.template multiply<kHeld, z_.part_depth>(sum, stored_weights(), operand + part_offset(),
                                                   z_.column_bytes);
      if constexpr (z_.parts > 1) add_parts(s & 1, sum);
      if (works()) {
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
          update(now, 0, column, inputs[column], sum[column], next, results[column]);
          if constexpr (kSends)
            if (!last) send(s, column, next);
        }
      }
      if (!last) {
        if constexpr (kSends)
          team_.expect(s, z_.blocks * z_.columns * z_.slice);
        else
          team_.publish(s, nullptr, 0, 0, 0);
      }
      if (works()) {
#pragma unroll
        for (int column = 0; column < kColumns; ++column) store(now, 0, column, results[column]);
        if (!last) load_inputs(then, inputs);
      }
      now = then, then = moment(steps, s + 2);
    }
  }
  __device__ __forceinline__ Moment moment(const Steps& steps, int s) const {
    return s < steps.count() ? sequences_.moment(steps.at(s)) : Moment();
  }

  // h of a lane's units into the next operand of all blocks.
  __device__ __forceinline__ void send(int s, int column, char* next) const {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      float h[kCells];
#pragma unroll
      for (int i = 0; i < kCells; ++i) h[i] = state(0, column, half, i, 0);
      const typename A::template Outgoing<kCells> words(h, part_);
      char* const from = next + column * z_.column_bytes +
                         (unit_of(0) - seat_.group + half * 8) / A::kPerCore * kCoreBytes;
#pragma unroll
      for (int to = 0; to < z_.blocks; to += words.kReceivers) {
        if (to + words.receiver >= z_.blocks) continue;
#pragma unroll
        for (int i = 0; i < words.kCount; ++i)
          team_.send(s, reinterpret_cast<uint32_t*>(from + words.at[i]), words.word[i],
                     team_.template rank_after<z_.blocks>(to + words.receiver));
      }
    }
  }

  // Whether this warp computes cells, and those of the even or the odd sequences.
  __device__ __forceinline__ bool works() const { return part_ < (z_.parts > 1 ? 2 : 1); }
  // A lane's cell i belongs to this one of two neighbouring sequences; and whether it is there.
  __device__ __forceinline__ int of_cell(int i) const { return kCells == 1 ? part_ : i; }
  __device__ __forceinline__ bool mine(int i) const {
    return kFixed || z_.parts == 1 || part_ == i;
  }
  __device__ __forceinline__ int first_sequence() const { return sequence(0, of_cell(0)); }
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
  __device__ __forceinline__ float& state(int turn, int column, int half, int i, int kind) const {
    if constexpr (kFixed) return state_[column][half][i][kind];
    const int index = (((turn * z_.columns + column) * kHalves + half) * 2 + i) * C::states;
    float* const all = reinterpret_cast<float*>(shared_ + z_.state);
    return all[((index + kind) * z_.leaders + first_group_) * kLanes + seat_.lane];
  }
  // What a unit has of its own: the biases of products and late inputs, and the unit weights.
  __device__ __forceinline__ float own(int turn, int half, int which) const {
    if constexpr (kFixed) return own_[half][which];
    return owns()[which * z_.units + unit_of(turn) + half * 8 - first_unit_];
  }
  __device__ __forceinline__ float* owns() const {  // [which][units]
    return reinterpret_cast<float*>(shared_ + z_.biases);
  }
  __device__ __forceinline__ char* stored_weights() const {
    return shared_ + z_.fragments + seat_.warp * z_.fragments_of_warp * kFragmentBytes;
  }
  __device__ __forceinline__ int part_offset() const {  // in the operand
    return part_ * z_.part_depth * 2 * kCoreBytes;
  }
  __device__ __forceinline__ int slice_offset() const {
    return first_unit_ / A::kPerCore * kCoreBytes;
  }

  template <bool kPairs>
  __device__ __forceinline__ void load_weights(Held& held) const {
    char* stored = stored_weights();
    for (int turn = 0; turn < z_.turns; ++turn) {
      const int first = first_unit_ + group(turn) * kUnits;
      const int end = group(turn) < z_.groups ? H() : 0;  // of the units that there are
      const auto fetch = [&](int k, int tile) {
        const int from = (part_ * z_.part_depth + k) * A::kDepth;
        return A::template fetch<false, kPairs>(d_.w_hh, [&](int row, int column) {
          const int eight = tile * 2 + row / 8;  // 8 rows: one gate of 8 units
          const int unit = first + eight / C::products * 8 + row % 8;
          const int gate = C::gate_of_product(eight % C::products);
          const bool there = (kFixed || unit < end) && (kWhole || from + column < H());
          return there ? (gate * H() + unit) * H() + from + column : -1;
        });
      };
      if (turn == 0)
        stored = held.template load<false, true>(fetch, stored, z_.part_depth, kTiles);
      else
        stored = held.template load<false, false>(fetch, stored, z_.depth, kTiles);
    }
  }

  __device__ __forceinline__ void load_own() {
    if constexpr (kFixed) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half)
#pragma unroll
        for (int i = 0; i < kOwn; ++i) own_[half][i] = own_of(i, unit_of(0) + half * 8);
    } else {
      const int count = kOwn * z_.units;
      for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x))
        owns()[i] = own_of(i / z_.units, first_unit_ + i % z_.units);
    }
  }
  __device__ __forceinline__ float own_of(int which, int unit) const {
    return !is_unit(unit)          ? 0.0f
           : which >= kFirstWeight ? widen(d_.w_unit[(which - kFirstWeight) * H() + unit])
                                   : bias_of(which, unit);
  }
  __device__ __forceinline__ float bias_of(int slot, int unit) const {
    const bool late = slot >= C::products;
    const int of_input =
        late ? C::inputs - C::late + slot - C::products : C::input_of_product(slot);
    float bias = 0;
    if (d_.b_ih && of_input >= 0) bias += widen(d_.b_ih[C::gate_of_input(of_input) * H() + unit]);
    if (d_.b_hh && !late) bias += widen(d_.b_hh[C::gate_of_product(slot) * H() + unit]);
    return bias;
  }

  // Units of the operand, those beyond the team's that a part may have, too.
  __device__ __forceinline__ int padded_units() const {
    return z_.column_bytes / kCoreBytes * A::kPerCore;
  }
  // h of all units to the first operand; the own units' states to where their threads keep them.
  // What is beyond all units is never written again.
  __device__ __forceinline__ void load_states() const {
    const int units = z_.blocks * z_.units, padded = padded_units(), count = padded * z_.rows;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      const int unit = i % padded, row = i / padded;
      char* const operand = shared_ + row / kColumns * z_.column_bytes;
      A::put(operand, unit, row % kColumns, unit < units ? given(d_.h_in, row, unit) : 0.0f);
      if (unit >= units) A::put(operand + z_.operand, unit, row % kColumns, 0.0f);
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
    return row < sequences_.count && is_unit(unit);
  }
  __device__ __forceinline__ float given(const E* states, int row, int unit) const {
    return states && there(row, unit) ? widen(states[index(row, unit)]) : 0.0f;
  }
  // f(sequence, unit, state_of) for the units of this thread; state_of(0) is h.
  template <class F>
  __device__ __forceinline__ void for_states(const F& f) const {
    if (!works()) return;
    for (int turn = 0; turn < z_.turns; ++turn)
#pragma unroll Known::kColumns
      for (int column = 0; column < z_.columns; ++column)
#pragma unroll
        for (int half = 0; half < kHalves; ++half)
#pragma unroll
          for (int i = 0; i < kCells; ++i)
            if (group(turn) < z_.groups && mine(i))
              f(sequence(column, of_cell(i)), unit_of(turn) + half * 8,
                [&](int kind) -> float& { return state(turn, column, half, i, kind); });
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
    const int padded = padded_units(), count = padded * sequences_.moment(t).alive;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      const int unit = i % padded, row = i / padded;
      char* const operand = shared_ + row / kColumns * z_.column_bytes;
      if (unit >= H()) continue;
      const int boundary = this->boundary(d, t, row);
      const float h =
          boundary < 0 ? given(d.h_in, row, unit) : this->reset_state(d, 0, boundary, row, unit);
      A::put(operand, unit, row % kColumns, h * factor_of(d, t, row, unit));
    }
  }

  template <int kColumns>
  __device__ __forceinline__ void load_inputs(const Moment& at, Inputs (&inputs)[kColumns]) const {
#pragma unroll
    for (int column = 0; column < kColumns; ++column) load_inputs(at, 0, column, inputs[column]);
  }
  __device__ __forceinline__ void load_inputs(const Moment& at, int turn, int column,
                                              Inputs& inputs) const {
    const int first = unit_of(turn), width = C::inputs * H();
    const Sum<E>* const gates =
        lane_of(gates_, d_.gates, at.row - (kFixed ? 0 : d_.first_row), width, first);
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      const int b = sequence(column, of_cell(i));
      if (!mine(i)) continue;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const bool there = b < at.alive && is_unit(first + half * 8);
#pragma unroll
        for (int slot = 0; slot < C::inputs; ++slot)
          inputs.value[half][i][slot] = there ? gates[from_lane(b, first_sequence()) * width +
                                                      C::gate_of_input(slot) * H() + half * 8]
                                              : 0.0f;
      }
    }
  }

  __device__ __forceinline__ void multiply(const Held& held, const char* operand, int turn,
                                           int column, float (&sum)[kTiles][4]) const {
    const char* const from = operand + column * z_.column_bytes + part_offset();
    if (turn == 0)
      return held.template multiply<true>(sum, stored_weights(), from, z_.part_depth, kTiles);
    const int before = (turn * z_.depth - z_.held) * kTiles;
    held.template multiply<false>(sum, stored_weights() + before * kFragmentBytes, from, z_.depth,
                                  kTiles);
  }

  // The place of a part's sums for the even or the odd sequences, of rows `group` and `group + 8`.
  __device__ __forceinline__ float2& sums_of(int turn, int part, int tile, int j) const {
    float2* const all = reinterpret_cast<float2*>(shared_ + z_.sums);
    if constexpr (kFixed) {
      const int slot = turn * Known::kSums + (part < 2 ? part : 2 * part - 2 + j);
      return all[((slot * z_.groups + first_group_) * kTiles + tile) * kLanes + seat_.lane];
    }
    const int place = (turn * z_.parts + part) * z_.groups + first_group_;
    return all[((place * kTiles + tile) * 2 + j) * kLanes + seat_.lane];
  }
  __device__ __forceinline__ void meet_parts() const {
    ptx::barrier(1 + static_cast<unsigned>(first_group_), static_cast<unsigned>(z_.parts) * kLanes);
  }

  // The sums of a group's parts, added in order, for the sequences that are this warp's.
  __device__ __forceinline__ void add_parts(int turn, float (&sum)[kTiles][4]) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int j = 0; j < 2; ++j) sums_of(turn, part_, tile, j) = {sum[tile][j], sum[tile][2 + j]};
    meet_parts();
    if (!works()) return;
    part_ == 0 ? add_parts_of<0>(turn, sum) : add_parts_of<1>(turn, sum);
  }
  template <int j>
  __device__ __forceinline__ void add_parts_of(int turn, float (&sum)[kTiles][4]) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) sum[tile][j] = sum[tile][2 + j] = 0;
#pragma unroll 1
    for (int part = 0; part < z_.parts; ++part) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const float2 both = sums_of(turn, part, tile, j);
        sum[tile][j] += both.x, sum[tile][2 + j] += both.y;
      }
    }
  }
  // The sums of a kernel that knows its sizes, for all columns. The two parts that compute cells
  // keep their own sums and begin with them, as good as in order.
  template <int kColumns>
  __device__ __forceinline__ void add_parts(int turn, float (&sum)[kColumns][kTiles][4]) const {
#pragma unroll
    for (int column = 0; column < kColumns; ++column)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (part_ != j)
            sums_of(turn * kColumns + column, part_, tile, j) = {sum[column][tile][j],
                                                                 sum[column][tile][2 + j]};
    meet_parts();
    if (!works()) return;
#pragma unroll
    for (int column = 0; column < kColumns; ++column)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        float (&own)[4] = sum[column][tile];
        own[0] = part_ ? own[1] : own[0], own[2] = part_ ? own[3] : own[2];
#pragma unroll
        for (int i = 1; i < z_.parts; ++i) {
          const int part = i == 1 ? 1 - part_ : i;
          const float2 both = sums_of(turn * kColumns + column, part, tile, part_);
          own[0] += both.x, own[2] += both.y;
        }
      }
  }

  // The cell of a lane's units, from the sums of its group.
  __device__ __forceinline__ void update(const Moment& at, int turn, int column,
                                         const Inputs& inputs, const float (&sum)[kTiles][4],
                                         char* next, Results& results) {
    results.turn = turn, results.column = column;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const int unit = unit_of(turn) + half * 8;
      E save[kSaved][2] = {};
#pragma unroll
      for (int i = 0; i < kCells; ++i) {
        if (!mine(i)) continue;
        const int b = sequence(column, of_cell(i));
        const float* const input = inputs.value[half][i];
        Forward<C, float> of = {};
#pragma unroll
        for (int slot = 0; slot < C::products; ++slot) {
          const int eight = half * C::products + slot, of_input = C::input_of_product(slot);
          const float product = sum[eight / 2][eight % 2 * 2 + i], bias = own(turn, half, slot);
          const float from_input = of_input >= 0 ? input[of_input < 0 ? 0 : of_input] : 0.0f;
          of.product[slot] = product + (bias + from_input);  // what is there before the product
        }
#pragma unroll
        for (int late = 0; late < C::late; ++late)
          of.late[late] = input[C::inputs - C::late + late] + own(turn, half, C::products + late);
#pragma unroll
        for (int weight = 0; weight < C::unit_weights; ++weight)
          of.unit_weight[weight] = own(turn, half, kFirstWeight + weight);
        const float h_before = state(turn, column, half, i, 0);
        float before[kAtLeastOne<kStates>];
#pragma unroll
        for (int kind = 0; kind < kStates; ++kind)
          of.state[kind] = before[kind] = state(turn, column, half, i, 1 + kind);
        of.h_prev = h_before;
        C::template forward<Math>(of);
        const bool exists = is_unit(unit), alive = b < at.alive;
        float h = widen(narrowed<E>(of.result));  // the next step sees what the caller sees
        h = !alive ? h_before : exists ? h : 0.0f;
        state(turn, column, half, i, 0) = h;
#pragma unroll
        for (int kind = 0; kind < kStates; ++kind)
          state(turn, column, half, i, 1 + kind) = !alive   ? before[kind]
                                                   : exists ? of.state[kind]
                                                            : 0.0f;
        if (!kSends) A::put(next + column * z_.column_bytes, unit, 2 * seat_.t4 + of_cell(i), h);
#pragma unroll
        for (int slot = 0; slot < kSaved; ++slot)
          save[slot][i] = narrowed<E>(C::saved && exists ? of.save[slot] : 0.0f);
      }
#pragma unroll
      for (int slot = 0; slot < kSaved; ++slot)
        results.save[half][slot].set(save[slot][0], save[slot][1]);
    }
  }

  __device__ __forceinline__ void store(const Moment& at, int turn, int column,
                                        const Results& results) const {
    const int first = unit_of(turn), width = C::saved * Hp();
    E* const y = lane_of(y_, d_.y, at.row, w_.y_row, first);
    E* const save = lane_of(save_, d_.save, at.row, width, first);
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      const int b = sequence(column, of_cell(i));
      if (!mine(i) || b >= at.alive) continue;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const int unit = first + half * 8;
        const float h = state(turn, column, half, i, 0);
        if (is_unit(unit)) y[from_lane(b, first_sequence()) * w_.y_row + half * 8] = narrowed<E>(h);
        if (!save || unit >= Hp()) continue;
#pragma unroll
        for (int slot = 0; slot < kSaved; ++slot)
          save[from_lane(b, first_sequence()) * width + slot * Hp() + half * 8] =
              results.save[half][slot].get(i);
      }
    }
  }

  const int part_, first_group_;
  // In registers, in a kernel that knows its sizes.
  mutable float state_[Known::kColumns][kHalves][kCells][C::states];
  float own_[kHalves][kAtLeastOne<kOwn>];
  const Sum<E>* gates_ = nullptr;
  E *y_ = nullptr, *save_ = nullptr;
};

template <class C, class A, class Sizes>
constexpr int threads_forward = kMostThreads;
template <class C, class A, int kBlocks, int kUnits, int kRows>
constexpr int threads_forward<C, A, Fixed<kBlocks, kUnits, kRows>> =
    SizesForward<C, A, Fixed<kBlocks, kUnits, kRows>>::z_.warps * kLanes;

template <class C, class A, class Team, class Sizes>
__global__ void __launch_bounds__(threads_forward<C, A, Sizes>, 1)
    walk_forward(const __grid_constant__ ForwardWalk<typename A::E> walk) {
  FUSEDRNN_DYNAMIC_SHARED(char, shared);
  if constexpr (kRunsHere<A, Team>)
    ForwardWalker<C, A, Team, Sizes>(walk, shared).run();
  else
    __trap();
}

}  // namespace fusedrnn::cuda
