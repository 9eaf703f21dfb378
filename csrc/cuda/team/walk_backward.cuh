// The backward walk of a team, from the last step to the first. A block keeps the rows of W_hh that
// are its own units', as forward. Per step:
//
//   dh of the own units = what everyone sent + what passes by the product + dy   (in that order)
//   dh, dstates and what forward kept -> gradients of the own gates; dstates stay in their thread
//   gradients -> memory, for the large products after the walk, and the right operand
//   own rows of W_hh, transposed, times the gradients -> this block's share of everyone's dh
//   each tile of that share -> the block whose units it is, as soon as it is there
//
// The shares are added in the order of the blocks' ranks.
//
// Modifiers act on the gradients in shared memory before and after a cell, which then knows nothing
// of them, and none of its registers wait for them:
//
//   before   dh: made whole with the shares, which are times the factor
//            where a boundary was crossed: added to the reset states' gradients, and 0 from here on
//            keep * gradient: to memory; the cell has the rest
//   after    that is added to what the cell passes on
//
// A kernel that is compiled for its team's sizes (Fixed) has no modifiers, and its loops unroll.
// Its gradients of states stay in registers.
#pragma once

#include "cells/cell.h"
#include "walk.cuh"

namespace fusedrnn::cuda {

template <class C, class A, class Team, class Sizes>
struct SizesBackward {  // as the launch tells them
  static constexpr bool kFixed = false;
  static constexpr int kGroup = kHeldTiles;
  static constexpr int kHeld = held_backward(walked<C>, A::arithmetic, Team::kind);
  static constexpr bool kSharedItems = false;
  __device__ __forceinline__ explicit SizesBackward(const BackwardSizes& told) : z_(told) {}
  const BackwardSizes& z_;
};
template <class C, class A, class Team, int kBlocks, int kUnits, int kRows>
struct SizesBackward<C, A, Team, Fixed<kBlocks, kUnits, kRows>> {
  static constexpr BackwardSizes z_ =
      backward_sizes(walked<C>, A::arithmetic, Fixed<kBlocks, kUnits, kRows>::team);
  static constexpr bool kFixed = true;
  static constexpr int kGroup = z_.group, kHeld = z_.held;
  static constexpr bool kSharedItems = z_.shared_items;
  static_assert(z_.items <= z_.warps, "states are in registers");
  __device__ __forceinline__ explicit SizesBackward(const BackwardSizes&) {}
};

template <class C, class A, class Team, class Sizes>
class BackwardWalker : Walker<BackwardWalk<typename A::E>, Team, SizesBackward<C, A, Team, Sizes>> {
  using E = typename A::E;
  using Known = SizesBackward<C, A, Team, Sizes>;
  using Base = Walker<BackwardWalk<E>, Team, Known>;
  using Base::H, Base::Hp, Base::is_unit, Base::lane_of, Base::place_of, Base::from_lane;
  using Base::sequences_, Base::first_unit_, Base::index, Base::note, Base::is_modified;
  using Base::w_, Base::z_, Base::seat_, Base::d_, Base::shared_, Base::team_;
  using typename Base::Direction;
  static constexpr int kSaved = kAtLeastOne<C::saved>;
  static constexpr int kStates = C::states - 1;  // except h
  static constexpr bool kFixed = Sizes::fixed;
  // Cells of a lane in an item: where two warps are known to share it, one.
  static constexpr int kCells = Known::kSharedItems ? 1 : 2;
  static constexpr int kGroup = Known::kGroup, kHeld = Known::kHeld;  // along the depth
  using Held = HeldWeights<A, kGroup, kHeld>;
  using Math = typename A::Math;

 public:
  __device__ __forceinline__ BackwardWalker(const BackwardWalk<E>& walk, char* shared)
      : Base(walk, shared),
        first_to_(seat_.warp / z_.block_tiles),
        first_local_(seat_.warp % z_.block_tiles) {}

  __device__ __forceinline__ void run() {
    Held held;
    Base::template with_pairs<A>([&](auto pairs) { load_weights<pairs.value>(held); });
    load_unit_weights();
    load_states();
    Steps steps;  // those of forward: the walk takes them from the last to the first
    steps.end = sequences_.end_of(0, w_.T), steps.backwards = seat_.direction == 1;
    team_.begin();
    if constexpr (kFixed)
      walk_fixed(held, steps);
    else
      walk(held, steps);
    team_.end();
  }

 private:
  // 8 units by 8 sequences, of which a lane has one unit of two sequences; or, where there are two
  // warps for each item, one. A warp's items are as many apart as there are warps.
  struct Item {
    int turn, eight, column;
  };
  __device__ __forceinline__ Item first_item() const {
    const int eights = z_.units / 8;
    const int item = z_.shared_items && seat_.warp >= z_.items ? seat_.warp - z_.items : seat_.warp;
    return {0, item % eights, item / eights};
  }
  // A lane's cell i belongs to this one of two neighbouring sequences; and whether it is there.
  __device__ __forceinline__ int of_cell(int i) const {
    return kCells == 1 ? seat_.warp >= z_.items : i;
  }
  __device__ __forceinline__ bool mine(int i) const {
    return kFixed || !z_.shared_items || (seat_.warp >= z_.items) == (i == 1);
  }
  __device__ __forceinline__ int first_sequence(const Item& item) const {
    return sequence(item, of_cell(0));
  }
  __device__ __forceinline__ Item next(Item item) const {
    ++item.turn;
    for (item.eight += z_.warps; item.eight >= z_.units / 8; item.eight -= z_.units / 8)
      ++item.column;
    return item;
  }
  __device__ __forceinline__ bool exists(const Item& item) const {
    return item.column < z_.columns;
  }
  __device__ __forceinline__ int own_unit(const Item& item) const {  // of the block's
    return item.eight * 8 + seat_.group;
  }
  // A lane's sequence among the team's.
  __device__ __forceinline__ int sequence(const Item& item, int j) const {
    return item.column * kColumns + 2 * seat_.t4 + j;
  }

  // What forward kept of a lane's unit, and what the loss says of it, for its sequences. Not
  // packed: that would wait for the loads.
  struct Kept {
    E save[kCells][kSaved], dy[kCells];
    E h[kCells];  // as C::backward_needs says
  };
  // Gradients of a lane's unit that are not stored yet.
  struct Found {
    Pair<E> grads[C::grads];
  };

  __device__ __forceinline__ void walk(const Held& held, const Steps& steps) {
    const int count = steps.count();
    int alive_after = 0;  // sequences that have the step after this one
    Moment now = moment(steps, count - 1), before = moment(steps, count - 2);
    const Item first = first_item();
    Kept kept;
    if (exists(first)) load_kept(first, now, before, kept);
    Found found;
    int sent = 0;  // exchanges
    for (int s = count - 1; s >= 0; --s, ++sent) {
      char* const operand = shared_ + (sent & 1) * z_.operand;
      if (sent > 0) team_.wait_for_sent(sent - 1);
      Item latest = first;
#pragma unroll 1
      for (Item item = first; exists(item); latest = item, item = next(item)) {
        if (item.turn > 0) {
          store(latest, now, found);
          load_kept(item, now, before, kept);
        }
        if (is_modified()) prepare(item, steps, s, now, alive_after, sent, kept);
        update(item, now, alive_after, kept, is_modified() ? 0 : sent, operand, found);
        if (is_modified()) finish(item, now);
      }
      const Moment further = moment(steps, s - 2);  // not before: others need the registers
      __syncthreads();
      if (exists(first)) {
        store(latest, now, found);
        if (s > 0) load_kept(first, before, further, kept);
      }
      alive_after = now.alive, now = before, before = further;
      if (s == 0 && !w_.wants_first) continue;
      team_.expect(sent, z_.inbox_bytes);
      multiply(held, operand, sent);
    }
    if (w_.wants_first && sent > 0) team_.wait_for_sent(sent - 1);
    if (is_modified() && sent > 0)
      for (Item item = first; exists(item); item = next(item))
        cross(item, steps.at(0), alive_after, w_.wants_first ? sent : 0);
    store_states(alive_after, is_modified() ? 0 : sent);
  }

  // The walk of a kernel that knows its sizes. A warp has one item or none. Nothing comes between
  // the cells and the shares that others wait for; what the next step reads from memory is asked
  // for afterwards, and arrives while shares travel.
  __device__ __forceinline__ void walk_fixed(const Held& held, const Steps& steps) {
    const int count = steps.count();
    int alive_after = 0, sent = 0;
    Moment now = moment(steps, count - 1), before = moment(steps, count - 2);
    const Item item = first_item();
    const int first = first_sequence(item), unit = first_unit_ + own_unit(item);
    dy_ = place_of(d_.grad_y, first, w_.y_row, unit), y_ = place_of(d_.y, first, w_.y_row, unit);
    save_ = place_of(d_.save, first, C::saved * Hp(), unit);
    hx_ = place_of(d_.hx, first, H(), unit);
    grads_ = place_of(d_.grads, first, C::grads * H(), unit);
    Kept kept;
    if (exists(item)) load_kept(item, now, before, kept);
    Found found;
#pragma unroll 1
    for (int s = count - 1; s >= 0; --s, ++sent) {
      char* const operand = shared_ + (sent & 1) * z_.operand;
      if (sent > 0) team_.wait_for_sent(sent - 1);
      if (exists(item)) update(item, now, alive_after, kept, sent, operand, found);
      __syncthreads();
      if (s > 0 || w_.wants_first) {
        multiply_all(held, operand, sent);
        team_.expect(sent, z_.inbox_bytes);
      }
      const Moment further = moment(steps, s - 2);
      if (exists(item)) {
        store(item, now, found);
        if (s > 0) load_kept(item, before, further, kept);
      }
      alive_after = now.alive, now = before, before = further;
    }
    if (w_.wants_first && sent > 0) team_.wait_for_sent(sent - 1);
    store_states(alive_after, sent);
  }

  __device__ __forceinline__ Moment moment(const Steps& steps, int s) const {
    return s < 0 ? Moment() : sequences_.moment(steps.at(s));
  }
  // One of a lane's own gradients of states, among those of all threads; 0: what of dh has not come
  // through a product.
  __device__ __forceinline__ float& state(const Item& item, int i, int kind) const {
    if constexpr (kFixed) return state_[i][kind];
    float* const all = reinterpret_cast<float*>(shared_ + z_.state);
    return all[((item.turn * 2 + i) * C::states + kind) * static_cast<int>(blockDim.x) +
               static_cast<int>(threadIdx.x)];
  }
  __device__ __forceinline__ float* unit_weights() const {  // [unit weights][units]
    return reinterpret_cast<float*>(shared_ + z_.unit_weights);
  }
  __device__ __forceinline__ char* stored_weights() const {
    const int beyond = seat_.warp > z_.full_warps ? seat_.warp - z_.full_warps : 0;
    return shared_ + z_.fragments +
           ((seat_.warp - beyond) * z_.fragments_of_warp + beyond * z_.fragments_of_other) *
               kFragmentBytes;
  }
  // Tiles of this warp from `turn` on, at most kGroup.
  __device__ __forceinline__ int tiles_from(int turn) const {
    const int left = (seat_.warp < z_.full_warps ? z_.turns : z_.turns - 1) - turn;
    return left < kGroup ? left : kGroup;
  }
  // [column][block][unit][8 sequences]: what the blocks sent in an exchange.
  __device__ __forceinline__ float* inbox(int exchange, int column, int from) const {
    char* const all = shared_ + z_.inbox + (exchange & 1) * z_.inbox_bytes;
    return reinterpret_cast<float*>(all) + (column * z_.blocks + from) * z_.units * kColumns;
  }

  template <bool kPairs>
  __device__ __forceinline__ void load_weights(Held& held) const {
    char* stored = stored_weights();
    for (int turn = 0; turn < z_.turns; turn += kGroup) {
      const int tiles = kFixed ? kGroup : tiles_from(turn);
      const auto fetch = [&](int k, int tile) {
        const int own = k * A::kDepth, unit = first_unit_ + own % z_.units;  // of one gate
        const int gate = C::gate_of_product(own / z_.units) * H() + unit;
        const int to = (seat_.warp + (turn + tile) * z_.warps) * kTile;
        return A::template fetch<true, kPairs>(d_.w_hh, [&](int row, int column) {
          const bool there = to + row < H() && is_unit(unit + column);
          return there ? (gate + column) * H() + to + row : -1;
        });
      };
      if (turn == 0)
        stored = held.template load<true, true>(fetch, stored, z_.depth, tiles);
      else
        stored = held.template load<true, false>(fetch, stored, z_.depth, tiles);
    }
  }

  __device__ __forceinline__ void load_unit_weights() const {
    const int count = C::unit_weights * z_.units;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      const int unit = first_unit_ + i % z_.units;
      unit_weights()[i] = is_unit(unit) ? widen(d_.w_unit[i / z_.units * H() + unit]) : 0.0f;
    }
  }

  // f(item, cell, index in [B][H]) for the states of this thread.
  template <class F>
  __device__ __forceinline__ void for_states(const F& f) const {
#pragma unroll 1
    for (Item item = first_item(); exists(item); item = next(item))
#pragma unroll
      for (int i = 0; i < kCells; ++i) {
        const int unit = first_unit_ + own_unit(item), b = sequence(item, of_cell(i));
        const bool there = b < sequences_.count && is_unit(unit);
        if (mine(i))
          f(item, i, there ? static_cast<int64_t>(sequences_.first + b) * H() + unit : -1);
      }
  }
  __device__ __forceinline__ void load_states() const {
    for_states([&](const Item& item, int i, int64_t at) {
#pragma unroll
      for (int kind = 0; kind < C::states; ++kind)
        state(item, i, kind) = at >= 0 && d_.grad_hn[kind] ? widen(d_.grad_hn[kind][at]) : 0.0f;
    });
  }
  __device__ __forceinline__ void store_states(int alive, int sent) const {
    for_states([&](const Item& item, int i, int64_t at) {
      if (d_.grad_hx[0]) {
        float dh[kCells];
        load_dh(item, alive, sent, dh);
        if (at >= 0) narrow(dh[i], d_.grad_hx[0][at]);
      }
#pragma unroll
      for (int kind = 1; kind < C::states; ++kind)
        if (at >= 0 && d_.grad_hx[kind]) narrow(state(item, i, kind), d_.grad_hx[kind][at]);
    });
  }

  __device__ __forceinline__ void load_kept(const Item& item, const Moment& now,
                                            const Moment& before, Kept& kept) const {
    const int unit = first_unit_ + own_unit(item), width = C::saved * Hp();
    const E* const save = lane_of(save_, d_.save, now.row, width, unit);
    const E* const y = lane_of(y_, d_.y, now.row, w_.y_row, unit);
    const E* const dy = lane_of(dy_, d_.grad_y, now.row, w_.y_row, unit);
    const E* const y_before = lane_of(y_, d_.y, before.row, w_.y_row, unit);
    const E* const hx = lane_of(hx_, d_.hx, sequences_.first, H(), unit);
    const E zero = narrowed<E>(0);
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      if (!mine(i)) continue;
      const int b = sequence(item, of_cell(i));
      const bool there = b < now.alive && is_unit(unit);
      const int at = from_lane(b, first_sequence(item));
      kept.dy[i] = there && dy ? dy[at * w_.y_row] : zero;
#pragma unroll
      for (int slot = 0; slot < kSaved; ++slot)
        kept.save[i][slot] = there && C::saved ? save[at * width + slot * Hp()] : zero;
      const bool goes_on = b < before.alive;
      const E* const state = goes_on ? y_before + at * w_.y_row : hx ? hx + at * H() : nullptr;
      kept.h[i] = zero;
      if (C::backward_needs == Needs::h_prev && there && state) kept.h[i] = *state;
      if (C::backward_needs == Needs::h && there) kept.h[i] = y[at * w_.y_row];
    }
  }
  // f(j, sequence, unit) for those of a lane's item that are among the first `alive` sequences.
  template <class F>
  __device__ __forceinline__ void for_cells(const Item& item, int alive, const F& f) const {
    const int unit = first_unit_ + own_unit(item);
#pragma unroll 1
    for (int j = 0; j < 2; ++j) {
      const int b = sequence(item, j);
      if (mine(j) && b < alive && is_unit(unit)) f(j, b, unit);
    }
  }
  // A copy whose fields are computed where it is used; see ptx::computed_here.
  __device__ __forceinline__ Item here(const Item& item) const {
    return {ptx::computed_here(item.turn), ptx::computed_here(item.eight),
            ptx::computed_here(item.column)};
  }

  // What arrives from step t, before the step that the walk comes to next, for the first `alive`
  // sequences: dh becomes whole, with the blocks' shares if something was sent.
  __device__ __forceinline__ void cross(const Item& of, int t, int alive, int sent) const {
    const Item item = here(of);
    float shares[2];
    load_shares(item, sent, shares);
    for_cells(item, alive, [&](int j, int b, int unit) {
      const Direction& d = this->direction_here();
      const auto& factor = d.modifiers.recurrent_factor;
      float share = j ? shares[1] : shares[0];
      if (factor) share *= this->value(factor, t, b, unit);
      state(item, j, 0) += share;
      const int boundary = this->boundary(d, t, b);
      if (boundary < 0) return;
#pragma unroll
      for (int i = 0; i < C::states; ++i) {
        const auto& to = d.grad_reset_states[i];
        if (to) to.at(boundary, sequences_.first + b)[unit] += state(item, j, i);
        state(item, j, i) = 0;
      }
    });
  }

  __device__ __forceinline__ void prepare(const Item& of, Steps steps, int s, const Moment& now,
                                          int alive_after, int sent, Kept& kept) const {
    s = ptx::computed_here(s), steps.end = ptx::computed_here(steps.end);
    if (sent > 0) cross(of, steps.at(s + 1), alive_after, sent);
    const Item item = here(of);
    for_cells(item, now.alive, [&](int j, int b, int unit) {
      const Direction& d = this->direction_here();
#pragma unroll
      for (int i = 0; i < C::states; ++i) {
        float& gradient = state(item, j, i);
        const E* const more = i > 0 ? d.grad_states[i > 0 ? i - 1 : 0] : nullptr;
        if (more) gradient += widen(more[static_cast<int64_t>(now.row + b) * w_.y_row + unit]);
        const auto& keep = d.modifiers.keep[i];
        if (!keep) continue;
        if (i == 0) gradient += widen(take(kept.dy, j));  // which the cell would add
        note(d, b, unit, i) = split(this->value(keep, steps.at(s), b, unit), gradient);
      }
    });
    if (C::backward_needs != Needs::nothing) correct(item, steps, s, now, kept);
  }
  // One of two values in registers, with zero left in its place.
  __device__ __forceinline__ static E take(E (&two)[2], int j) {
    const E taken = j ? two[1] : two[0], zero = narrowed<E>(0);
    two[0] = j ? two[0] : zero, two[1] = j ? zero : two[1];
    return taken;
  }
  // h as the cell needs it, if it is not what was loaded: before the step it is another beyond a
  // boundary, and after the step something was kept.
  __device__ __forceinline__ void correct(const Item& item, const Steps& steps, int s,
                                          const Moment& now, Kept& kept) const {
    const auto& modifiers = this->direction_here().modifiers;
    if (C::backward_needs == Needs::h ? !modifiers.keep[0] : !modifiers.reset) return;
    for_cells(item, now.alive, [&](int j, int b, int unit) {
      const Direction& d = this->direction_here();
      const int t = steps.at(s), boundary = this->boundary(d, t, b);
      E h;
      if (C::backward_needs == Needs::h_prev) {
        if (boundary < 0) return;
        narrow(this->reset_state(d, 0, boundary, b, unit), h);
      } else {
        const Moment before = moment(steps, s - 1);
        float old = 0;
        if (boundary >= 0)
          old = this->reset_state(d, 0, boundary, b, unit);
        else if (b < before.alive)
          old = widen(d.y[static_cast<int64_t>(before.row + b) * w_.y_row + unit]);
        else if (d.hx)
          old = widen(d.hx[index(b, unit)]);
        const float share = this->value(d.modifiers.keep[0], t, b, unit);
        narrow(unmixed<E>(share, old, widen(j ? kept.h[1] : kept.h[0])), h);
      }
      kept.h[0] = j ? kept.h[0] : h, kept.h[1] = j ? h : kept.h[1];
    });
  }
  __device__ __forceinline__ void finish(const Item& of, const Moment& now) const {
    const Item item = here(of);
    for_cells(item, now.alive, [&](int j, int b, int unit) {
      const Direction& d = this->direction_here();
#pragma unroll
      for (int i = 0; i < C::states; ++i)
        if (d.modifiers.keep[i]) state(item, j, i) += note(d, b, unit, i);
    });
  }

  // dh of a lane's unit before dy: of sequences that had the step after, with the blocks' shares.
  __device__ __forceinline__ void load_dh(const Item& item, int alive_after, int sent,
                                          float (&dh)[kCells]) const {
    float shares[kCells];
    load_shares(item, sent, shares);
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      if (!mine(i)) continue;
      dh[i] = state(item, i, 0);
      if (sequence(item, of_cell(i)) < alive_after) dh[i] += shares[i];
    }
  }
  __device__ __forceinline__ void load_shares(const Item& item, int sent,
                                              float (&shares)[kCells]) const {
#pragma unroll
    for (float& share : shares) share = 0;
    if (sent == 0) return;
    const float* from = inbox(sent - 1, item.column, 0) + own_unit(item) * kColumns + 2 * seat_.t4 +
                        (kCells == 1 ? of_cell(0) : 0);
    // With as many loads under way as a kernel that does not know how many there are can afford.
    [[maybe_unused]] constexpr int kUnroll = kFixed ? 8 : 4;
#pragma unroll kUnroll
    for (int rank = 0; rank < z_.blocks; ++rank, from += z_.units * kColumns) {
      const Few<kCells> some = *reinterpret_cast<const Few<kCells>*>(from);
#pragma unroll
      for (int i = 0; i < kCells; ++i) shares[i] += some.value[i];
    }
  }
  template <int n>
  struct alignas(4 * n) Few {
    float value[n];
  };

  __device__ __forceinline__ void update(const Item& item, const Moment& now, int alive_after,
                                         const Kept& kept, int sent, char* operand,
                                         Found& found) const {
    float dh[kCells];
    load_dh(item, alive_after, sent, dh);
    const int own = own_unit(item);
    char* const to = operand + item.column * z_.column_bytes;
    E grads[C::grads][2] = {};
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      if (!mine(i)) continue;
      const bool alive = sequence(item, of_cell(i)) < now.alive && is_unit(first_unit_ + own);
      Backward<C, float> of = {};
#pragma unroll
      for (int slot = 0; slot < kSaved; ++slot) of.save[slot] = widen(kept.save[i][slot]);
#pragma unroll
      for (int weight = 0; weight < C::unit_weights; ++weight)
        of.unit_weight[weight] = unit_weights()[weight * z_.units + own];
#pragma unroll
      for (int kind = 0; kind < kStates; ++kind) of.dstate[kind] = state(item, i, 1 + kind);
      of.h = widen(kept.h[i]), of.dresult = dh[i] + widen(kept.dy[i]);
      C::template backward<Math>(of);
      state(item, i, 0) = !alive ? dh[i] : C::has_carry ? of.carry : 0.0f;
#pragma unroll
      for (int kind = 0; kind < kStates; ++kind)
        if (alive) state(item, i, 1 + kind) = of.dstate[kind];
#pragma unroll
      for (int slot = 0; slot < C::grads; ++slot) {
        const float value = alive ? of.grad[slot] : 0.0f;
        if (slot < C::products) A::put(to, slot * z_.units + own, 2 * seat_.t4 + of_cell(i), value);
        grads[slot][i] = narrowed<E>(value);
      }
    }
#pragma unroll
    for (int slot = 0; slot < C::grads; ++slot)
      found.grads[slot].set(grads[slot][0], grads[slot][1]);
  }

  __device__ __forceinline__ void store(const Item& item, const Moment& now,
                                        const Found& found) const {
    const int unit = first_unit_ + own_unit(item), width = C::grads * H();
    E* const grads = lane_of(grads_, d_.grads, now.row, width, unit);
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      const int b = sequence(item, of_cell(i));
      if (!mine(i) || b >= now.alive || !is_unit(unit)) continue;
#pragma unroll
      for (int slot = 0; slot < C::grads; ++slot) {
        const int column = C::template column_of_grad<C>(slot);
        grads[from_lane(b, first_sequence(item)) * width + column * H()] = found.grads[slot].get(i);
      }
    }
  }

  __device__ __forceinline__ void multiply(const Held& held, const char* operand, int sent) const {
#pragma unroll 1
    for (int column = 0; column < z_.columns; ++column) {
      const char* const from = operand + column * z_.column_bytes;
      const char* stored = stored_weights();
      int to = first_to_, local = first_local_;  // whose the next tile is, and which of theirs
      for (int turn = 0; turn < z_.turns; turn += kGroup) {
        const int tiles = tiles_from(turn);
        float sum[kGroup][4];
        if (turn == 0) {
          held.template multiply<true>(sum, stored, from, z_.depth, tiles);
          stored += (z_.depth - z_.held) * tiles * kFragmentBytes;
        } else {
          held.template multiply<false>(sum, stored, from, z_.depth, tiles);
          stored += z_.depth * tiles * kFragmentBytes;
        }
#pragma unroll
        for (int tile = 0; tile < kGroup; ++tile) {
          if (tile >= tiles) continue;
          send(to, local, column, sent, sum[tile]);
          to += z_.hop_blocks, local += z_.hop_tiles;
          if (local >= z_.block_tiles) local -= z_.block_tiles, ++to;
        }
      }
    }
  }

  // The product of a kernel that knows its sizes: all columns at once, tile groups one after the
  // other.
  __device__ __forceinline__ void multiply_all(const Held& held, const char* operand,
                                               int sent) const {
    const char* stored = stored_weights();
    multiply_group<0, kHeld>(held, stored, operand, sent);
    stored += (z_.depth - z_.held) * kGroup * kFragmentBytes;
    if constexpr (z_.turns > kGroup) multiply_group<kGroup, 0>(held, stored, operand, sent);
    stored += z_.depth * kGroup * kFragmentBytes;
    if constexpr (z_.turns > 2 * kGroup) multiply_group<2 * kGroup, 0>(held, stored, operand, sent);
    static_assert(z_.turns <= 3 * kGroup, "as many as there are above");
  }
  template <int kTurn, int kOfHeld>
  __device__ __forceinline__ void multiply_group(const Held& held, const char* stored,
                                                 const char* operand, int sent) const {
    float sum[z_.columns][kGroup][4];
    held.template multiply<kOfHeld, z_.depth>(sum, stored, operand, z_.column_bytes);
#pragma unroll
    for (int tile = 0; tile < kGroup; ++tile) {
      const int at = seat_.warp + (kTurn + tile) * z_.warps;
      if (at >= z_.tiles) continue;
#pragma unroll
      for (int column = 0; column < z_.columns; ++column)
        send(at / z_.block_tiles, at % z_.block_tiles, column, sent, sum[column][tile]);
    }
  }

  // A tile of sums to the block whose units it is. Neighbouring lanes exchange halves, so that each
  // has four sequences of one unit: 16 bytes.
  __device__ __forceinline__ void send(int to, int local, int column, int sent,
                                       const float (&sum)[4]) const {
    const bool odd = seat_.t4 % 2;
    const float other[2] = {__shfl_xor_sync(~0u, odd ? sum[0] : sum[2], 1),
                            __shfl_xor_sync(~0u, odd ? sum[1] : sum[3], 1)};
    const float4 four = odd ? float4{other[0], other[1], sum[2], sum[3]}
                            : float4{sum[0], sum[1], other[0], other[1]};
    const int unit = local * kTile + seat_.group + (odd ? 8 : 0);
    float* const place =
        inbox(sent, column, static_cast<int>(team_.rank())) + unit * kColumns + seat_.t4 / 2 * 4;
    team_.send(sent, reinterpret_cast<float4*>(place), four, static_cast<unsigned>(to));
  }

  const int first_to_, first_local_;  // of a warp's first tile: whose, which of theirs
  // In registers, in a kernel that knows its sizes.
  mutable float state_[kCells][C::states];
  const E *dy_ = nullptr, *y_ = nullptr, *save_ = nullptr, *hx_ = nullptr;
  E* grads_ = nullptr;
};

template <class C, class A, class Team, class Sizes>
constexpr int threads_backward = kMostThreads;
template <class C, class A, class Team, int kBlocks, int kUnits, int kRows>
constexpr int threads_backward<C, A, Team, Fixed<kBlocks, kUnits, kRows>> =
    SizesBackward<C, A, Team, Fixed<kBlocks, kUnits, kRows>>::z_.warps * kLanes;

template <class C, class A, class Team, class Sizes>
__global__ void __launch_bounds__(threads_backward<C, A, Team, Sizes>, 1)
    walk_backward(const __grid_constant__ BackwardWalk<typename A::E> walk) {
  FUSEDRNN_DYNAMIC_SHARED(char, shared);
  if constexpr (kRunsHere<A, Team>)
    BackwardWalker<C, A, Team, Sizes>(walk, shared).run();
  else
    __trap();
}

}  // namespace fusedrnn::cuda
