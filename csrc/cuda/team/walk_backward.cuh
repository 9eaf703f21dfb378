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
#pragma once

#include "cells/cell.h"
#include "walk.cuh"

namespace fusedrnn::cuda {

template <class C, class A, class Team>
class BackwardWalker : Walker<BackwardWalk<typename A::E>, Team> {
  using E = typename A::E;
  using Base = Walker<BackwardWalk<E>, Team>;
  using Base::sequences_, Base::first_unit_, Base::index, Base::note, Base::is_modified;
  using Base::w_, Base::z_, Base::seat_, Base::d_, Base::shared_, Base::team_;
  using typename Base::Direction;
  static constexpr int kSaved = kAtLeastOne<C::saved>;
  static constexpr int kStates = C::states - 1;  // except h
  static constexpr int kHeld =
      held_backward(walked<C>, A::arithmetic, Team::kind);  // along the depth
  using Held = HeldWeights<A, kHeldTiles, kHeld>;

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
    const int count = steps.count();
    team_.begin();

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
  __device__ __forceinline__ bool mine(int j) const {
    return !z_.shared_items || (seat_.warp >= z_.items) == (j == 1);
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

  // What forward kept of a lane's unit, and what the loss says of it, for two sequences. Not
  // packed: that would wait for the loads.
  struct Kept {
    E save[2][kSaved], dy[2];
    E h[2];  // as C::backward_needs says
  };
  // Gradients of a lane's unit that are not stored yet.
  struct Found {
    Pair<E> grads[C::grads];
  };

  __device__ __forceinline__ Moment moment(const Steps& steps, int s) const {
    return s < 0 ? Moment() : sequences_.moment(steps.at(s));
  }
  // One of a lane's own gradients of states, among those of all threads; 0: what of dh has not come
  // through a product.
  __device__ __forceinline__ float& state(const Item& item, int j, int kind) const {
    float* const all = reinterpret_cast<float*>(shared_ + z_.state);
    return all[((item.turn * 2 + j) * C::states + kind) * static_cast<int>(blockDim.x) +
               static_cast<int>(threadIdx.x)];
  }
  __device__ __forceinline__ float* unit_weights() const {  // [unit weights][units]
    return reinterpret_cast<float*>(shared_ + z_.unit_weights);
  }
  __device__ __forceinline__ int held_depth() const { return z_.depth < kHeld ? z_.depth : kHeld; }
  __device__ __forceinline__ char* stored_weights() const {
    const int beyond = seat_.warp > z_.full_warps ? seat_.warp - z_.full_warps : 0;
    return shared_ + z_.fragments +
           ((seat_.warp - beyond) * z_.fragments_of_warp + beyond * z_.fragments_of_other) *
               kFragmentBytes;
  }
  // Tiles of this warp from `turn` on, at most kHeldTiles.
  __device__ __forceinline__ int tiles_from(int turn) const {
    const int left = (seat_.warp < z_.full_warps ? z_.turns : z_.turns - 1) - turn;
    return left < kHeldTiles ? left : kHeldTiles;
  }
  // [column][block][unit][8 sequences]: what the blocks sent in an exchange.
  __device__ __forceinline__ float* inbox(int exchange, int column, int from) const {
    char* const all = shared_ + z_.inbox + (exchange & 1) * z_.inbox_bytes;
    return reinterpret_cast<float*>(all) + (column * z_.blocks + from) * z_.units * kColumns;
  }

  template <bool kPairs>
  __device__ __forceinline__ void load_weights(Held& held) const {
    char* stored = stored_weights();
    for (int turn = 0; turn < z_.turns; turn += kHeldTiles) {
      const int tiles = tiles_from(turn);
      const auto fetch = [&](int k, int tile) {
        const int own = k * A::kDepth, unit = first_unit_ + own % z_.units;  // of one gate
        const int gate = C::gate_of_product(own / z_.units) * w_.H + unit;
        const int to = (seat_.warp + (turn + tile) * z_.warps) * kTile;
        return A::template fetch<true, kPairs>(d_.w_hh, [&](int row, int column) {
          return to + row < w_.H && unit + column < w_.H ? (gate + column) * w_.H + to + row : -1;
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
      unit_weights()[i] = unit < w_.H ? widen(d_.w_unit[i / z_.units * w_.H + unit]) : 0.0f;
    }
  }

  // f(item, j, index in [B][H]) for the states of this thread.
  template <class F>
  __device__ __forceinline__ void for_states(const F& f) const {
#pragma unroll 1
    for (Item item = first_item(); exists(item); item = next(item))
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int unit = first_unit_ + own_unit(item), b = sequence(item, j);
        const bool there = b < sequences_.count && unit < w_.H;
        if (mine(j))
          f(item, j, there ? static_cast<int64_t>(sequences_.first + b) * w_.H + unit : -1);
      }
  }
  __device__ __forceinline__ void load_states() const {
    for_states([&](const Item& item, int j, int64_t at) {
#pragma unroll
      for (int i = 0; i < C::states; ++i)
        state(item, j, i) = at >= 0 && d_.grad_hn[i] ? widen(d_.grad_hn[i][at]) : 0.0f;
    });
  }
  __device__ __forceinline__ void store_states(int alive, int sent) const {
    for_states([&](const Item& item, int j, int64_t at) {
      if (d_.grad_hx[0]) {
        float dh[2];
        load_dh(item, alive, sent, dh);
        if (at >= 0) narrow(dh[j], d_.grad_hx[0][at]);
      }
#pragma unroll
      for (int i = 1; i < C::states; ++i)
        if (at >= 0 && d_.grad_hx[i]) narrow(state(item, j, i), d_.grad_hx[i][at]);
    });
  }

  __device__ __forceinline__ void load_kept(const Item& item, const Moment& now,
                                            const Moment& before, Kept& kept) const {
    const int unit = first_unit_ + own_unit(item), width = C::saved * w_.Hp;
    const auto from = [&](const E* array, int64_t offset) {
      return array ? array + offset + unit : nullptr;
    };
    const int64_t row = now.row, y_row = w_.y_row;
    const E* const save = from(d_.save, row * width);
    const E* const y = from(d_.y, row * y_row);
    const E* const dy = from(d_.grad_y, row * y_row);
    const E* const y_before = from(d_.y, before.row * y_row);
    const E* const hx = from(d_.hx, static_cast<int64_t>(sequences_.first) * w_.H);
    const E zero = narrowed<E>(0);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (!mine(j)) continue;
      const int b = sequence(item, j);
      const bool there = b < now.alive && unit < w_.H;
      kept.dy[j] = there && dy ? dy[b * w_.y_row] : zero;
#pragma unroll
      for (int slot = 0; slot < kSaved; ++slot)
        kept.save[j][slot] = there && C::saved ? save[b * width + slot * w_.Hp] : zero;
      const bool goes_on = b < before.alive;
      const E* const state = goes_on ? y_before + b * w_.y_row : hx ? hx + b * w_.H : nullptr;
      kept.h[j] = zero;
      if (C::backward_needs == Needs::h_prev && there && state) kept.h[j] = *state;
      if (C::backward_needs == Needs::h && there) kept.h[j] = y[b * w_.y_row];
    }
  }
  // f(j, sequence, unit) for those of a lane's item that are among the first `alive` sequences.
  template <class F>
  __device__ __forceinline__ void for_cells(const Item& item, int alive, const F& f) const {
    const int unit = first_unit_ + own_unit(item);
#pragma unroll 1
    for (int j = 0; j < 2; ++j) {
      const int b = sequence(item, j);
      if (mine(j) && b < alive && unit < w_.H) f(j, b, unit);
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
                                          float (&dh)[2]) const {
    float shares[2];
    load_shares(item, sent, shares);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (!mine(j)) continue;
      dh[j] = state(item, j, 0);
      if (sequence(item, j) < alive_after) dh[j] += shares[j];
    }
  }
  __device__ __forceinline__ void load_shares(const Item& item, int sent,
                                              float (&shares)[2]) const {
    float2 sum = {0, 0};
    if (sent > 0) {
      const float* share =
          inbox(sent - 1, item.column, 0) + own_unit(item) * kColumns + 2 * seat_.t4;
#pragma unroll 4
      for (int from = 0; from < z_.blocks; ++from, share += z_.units * kColumns) {
        const float2 both = *reinterpret_cast<const float2*>(share);
        sum.x += both.x, sum.y += both.y;
      }
    }
    shares[0] = sum.x, shares[1] = sum.y;
  }

  __device__ __forceinline__ void update(const Item& item, const Moment& now, int alive_after,
                                         const Kept& kept, int sent, char* operand,
                                         Found& found) const {
    float dh[2];
    load_dh(item, alive_after, sent, dh);
    const int own = own_unit(item);
    char* const to = operand + item.column * z_.column_bytes;
    E grads[C::grads][2] = {};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (!mine(j)) continue;
      const bool alive = sequence(item, j) < now.alive && first_unit_ + own < w_.H;
      Backward<C, float> of = {};
#pragma unroll
      for (int slot = 0; slot < kSaved; ++slot) of.save[slot] = widen(kept.save[j][slot]);
#pragma unroll
      for (int i = 0; i < C::unit_weights; ++i)
        of.unit_weight[i] = unit_weights()[i * z_.units + own];
#pragma unroll
      for (int i = 0; i < kStates; ++i) of.dstate[i] = state(item, j, 1 + i);
      of.h = widen(kept.h[j]), of.dresult = dh[j] + widen(kept.dy[j]);
      C::template backward<DeviceMath<float>>(of);
      state(item, j, 0) = !alive ? dh[j] : C::has_carry ? of.carry : 0.0f;
#pragma unroll
      for (int i = 0; i < kStates; ++i)
        if (alive) state(item, j, 1 + i) = of.dstate[i];
#pragma unroll
      for (int slot = 0; slot < C::grads; ++slot) {
        const float value = alive ? of.grad[slot] : 0.0f;
        if (slot < C::products) A::put(to, slot * z_.units + own, 2 * seat_.t4 + j, value);
        grads[slot][j] = narrowed<E>(value);
      }
    }
#pragma unroll
    for (int slot = 0; slot < C::grads; ++slot)
      found.grads[slot].set(grads[slot][0], grads[slot][1]);
  }

  __device__ __forceinline__ void store(const Item& item, const Moment& now,
                                        const Found& found) const {
    const int unit = first_unit_ + own_unit(item), width = C::grads * w_.H;
    E* const grads = d_.grads + static_cast<int64_t>(now.row) * width + unit;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int b = sequence(item, j);
      if (!mine(j) || b >= now.alive || unit >= w_.H) continue;
#pragma unroll
      for (int slot = 0; slot < C::grads; ++slot) {
        const int column = C::template column_of_grad<C>(slot);
        grads[b * width + column * w_.H] = found.grads[slot].get(j);
      }
    }
  }

  __device__ __forceinline__ void multiply(const Held& held, const char* operand, int sent) const {
#pragma unroll 1
    for (int column = 0; column < z_.columns; ++column) {
      const char* const from = operand + column * z_.column_bytes;
      const char* stored = stored_weights();
      int to = first_to_, local = first_local_;  // whose the next tile is, and which of theirs
      for (int turn = 0; turn < z_.turns; turn += kHeldTiles) {
        const int tiles = tiles_from(turn);
        float sum[kHeldTiles][4];
        if (turn == 0) {
          held.template multiply<true>(sum, stored, from, z_.depth, tiles);
          stored += (z_.depth - held_depth()) * tiles * kFragmentBytes;
        } else {
          held.template multiply<false>(sum, stored, from, z_.depth, tiles);
          stored += z_.depth * tiles * kFragmentBytes;
        }
#pragma unroll
        for (int tile = 0; tile < kHeldTiles; ++tile) {
          if (tile >= tiles) continue;
          send(to, local, column, sent, sum[tile]);
          to += z_.hop_blocks, local += z_.hop_tiles;
          if (local >= z_.block_tiles) local -= z_.block_tiles, ++to;
        }
      }
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
};

template <class C, class A, class Team>
__global__ void __launch_bounds__(kMostThreads, 1)
    walk_backward(const __grid_constant__ BackwardWalk<typename A::E> walk) {
  FUSEDRNN_DYNAMIC_SHARED(char, shared);
  if constexpr (kRunsHere<A, Team>)
    BackwardWalker<C, A, Team>(walk, shared).run();
  else
    __trap();
}

}  // namespace fusedrnn::cuda
