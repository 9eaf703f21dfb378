// Forward of one layer with int8 weights: a walk over the steps by a team of threads, as in
// forward_walk.h.
//
//   chunk     quantise x;  gates of the chunk's rows = bias + x W_ih^T, as one product
//     step    gates + h W_hh^T in registers, from there straight through the cell to h, float32
//             quantise h
//
// Only the operands of products are int8. A thread computes only the gates that it will use itself.
// h is read from the output, where the step before wrote it. When units are split, every thread
// quantises all of h for itself: that is much less work than the product, and leaves one barrier
// per step.
//
//   x, gates  [row of the chunk]           a thread's rows together: begin * steps + (s - s0) * n
//   h         [thread, if units are split][B]
#pragma once

#include "panels.h"
#include "quantized_tile.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

// Quantises a matrix of `units` rows for each slot and K columns; gate_of(slot) is torch's gate.
template <class GateOf>
void quantize_matrix(const void* weights, int64_t units, int64_t K, GateOf gate_of,
                     const QuantizedPlace& place, char* buffer) {
  const float* const W = static_cast<const float*>(weights);
  int8_t* const panels = reinterpret_cast<int8_t*>(buffer + place.panels);
  int32_t* const starts = reinterpret_cast<int32_t*>(buffer + place.starts);
  float* const scales = reinterpret_cast<float*>(buffer + place.scales);
  const int64_t block_bytes = place.quads * place.slots * kHiddenPadding * kQuad;
  for (int64_t unit = 0; unit < place.blocks * kHiddenPadding; ++unit)
    for (int slot = 0; slot < place.slots; ++slot) {
      const int64_t block = unit / kHiddenPadding, lane = unit % kHiddenPadding;
      const int64_t at = (block * place.slots + slot) * kHiddenPadding + lane;
      int8_t* const to = panels + block * block_bytes + (slot * kHiddenPadding + lane) * kQuad;
      const float* const row = unit < units ? W + (gate_of(slot) * units + unit) * K : nullptr;
      float largest = 0x1p-100f;
      for (int64_t k = 0; row && k < K; ++k) largest = most(largest, __builtin_fabsf(row[k]));
      const float inverse = 127 / largest;
      int32_t sum = 0;
      for (int64_t k = 0; k < place.quads * kQuad; ++k) {
        const bool valid = row && k < K;
        const int8_t q =
            valid ? static_cast<int8_t>(__builtin_lrintf(row[k] * inverse)) : int8_t{0};
        to[k / kQuad * place.slots * kHiddenPadding * kQuad + k % kQuad] = q;
        sum += q;
      }
      starts[at] = -128 * sum;
      scales[at] = row ? largest / 127 : 0;
    }
}

template <class C>
void quantize(const Shape& s, const Weights& w, char* buffer) {
  const QuantizedLayout places(s);
  const auto same = [](int slot) { return slot; };
  quantize_matrix(w.w_ih, s.H, s.I, same, places.w_ih, buffer);
  const auto gate_of = [](int slot) { return C::gate_of_product(slot); };
  quantize_matrix(w.w_hh, s.H, s.R(), gate_of, places.w_hh, buffer);
  if (s.P) quantize_matrix(w.w_hr, s.P, s.H, same, places.w_hr, buffer);
  add_biases<float>(s, s.facts().stage[0], w, reinterpret_cast<float*>(buffer + places.bias),
                    reinterpret_cast<float*>(buffer + places.hidden_bias));
}

template <class C>
class QuantizedWalk {
  static constexpr int64_t L = kLanes<float>;
  static constexpr int S = C::products;
  static constexpr int kVectors = S == 1 ? kGroup : 1;  // of units in a tile

 public:
  QuantizedWalk(const QuantizedProblem& p, const Plan& plan, Arena& arena)
      : p_(p),
        plan_(plan),
        Hp_(p.Hp()),
        x_row_(quantized_row(p.I)),
        h_row_(quantized_row(p.R())),
        hidden_row_(quantized_row(p.H)),
        groups_(make_groups(p.H, L, kVectors, plan)),
        outputs_(make_groups(p.P, L, kGroup, plan)) {
    const QuantizedLayout places(p);
    w_ih_ = QuantizedMatrix(p.buffer, places.w_ih);
    w_hh_ = QuantizedMatrix(p.buffer, places.w_hh);
    w_hr_ = QuantizedMatrix(p.buffer, places.w_hr);
    bias_ = reinterpret_cast<const float*>(p.buffer + places.bias);
    hidden_bias_ = reinterpret_cast<const float*>(p.buffer + places.hidden_bias);
    const int64_t rows = plan.forward_steps * p.B;
    const int64_t copies = plan.split == Split::units ? plan.threads : 1;
    x_ = arena.take<uint8_t>(rows * x_row_);
    x_scales_ = arena.take<float>(rows);
    gates_ = arena.take<float>(rows * S * Hp_);
    h_ = arena.take<uint8_t>(copies * p.B * h_row_);
    h_scales_ = arena.take<float>(copies * p.B);
    if (!p.P) return;
    hidden_ = arena.take<float>(p.B * Hp_);
    hidden_q_ = arena.take<uint8_t>(copies * p.B * hidden_row_);
    hidden_scales_ = arena.take<float>(copies * p.B);
  }

  void run(const Team& team) const {
    const bool split = plan_.split == Split::units;
    const Range rows =
        split || plan_.split == Split::none ? Range{0, p_.B} : share(p_.B, team.rank, team.size);
    const Range groups = group_share(groups_, plan_, team);
    const int64_t copy = split ? team.rank * p_.B : 0;  // this thread's copies of h begin there
    quantize(p_.states[0], p_.R(), p_.R(), rows, copy, h_, h_row_, h_scales_);
    for (int64_t s0 = 0; s0 < p_.T; s0 += plan_.forward_steps) {
      const int64_t s1 = least(s0 + plan_.forward_steps, p_.T);
      quantize_input(s0, s1, rows, team);
      project_input((s1 - s0) * rows.size(), rows.begin * plan_.forward_steps, groups);
      for (int64_t s = s0; s < s1; ++s) {
        step(s, rows.begin * plan_.forward_steps + (s - s0) * rows.size(), rows, copy, groups);
        if (p_.P) {
          if (split) team.sync();
          quantize(hidden_, Hp_, p_.H, rows, copy, hidden_q_, hidden_row_, hidden_scales_);
          project_output(s, rows, copy, team);
        }
        if (s + 1 == p_.T) break;
        if (split) team.sync();
        quantize(output(s), p_.R(), p_.R(), rows, copy, h_, h_row_, h_scales_);
      }
    }
    finish(rows, groups, team);
  }

 private:
  float* output(int64_t t) const { return p_.output + t * p_.B * p_.R(); }

  // Quantises the n values of each row.
  void quantize(const float* from, int64_t stride, int64_t n, Range rows, int64_t copy, uint8_t* to,
                int64_t to_stride, float* scales) const {
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      scales[copy + b] = quantize_row(from + b * stride, n, to + (copy + b) * to_stride);
    }
  }

  // When units are split, every thread needs all of the input, so the team quantises it together.
  void quantize_input(int64_t s0, int64_t s1, Range rows, const Team& team) const {
    const bool split = plan_.split == Split::units;
    const int64_t first = rows.begin * plan_.forward_steps, count = (s1 - s0) * rows.size();
    const Range mine = split ? share(count, team.rank, team.size) : Range{0, count};
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t t = s0 + i / rows.size(), b = rows.begin + i % rows.size();
      x_scales_[first + i] = quantize_row(p_.input + t * p_.input_step + b * p_.input_row, p_.I,
                                          x_ + (first + i) * x_row_);
    }
    if (split) team.sync();
  }

  void project_input(int64_t count, int64_t first, Range groups) const {
    QuantizedLinear tile;
    tile.matrix = w_ih_;
    tile.bias = bias_;
    tile.bias_slot = tile.out_slot = Hp_;
    tile.out_row = S * Hp_;
    tile.units = L;
    for (int64_t group = groups.begin; group < groups.end; ++group) {
      const int64_t nv = groups_.size(group);
      tile.unit = groups_.begin(group) * L;
      with_vectors_of<kVectors>(nv, [&](auto v) {
        constexpr int most = tile_rows(S * v);
        const Tiles tiles(count, most);
        for (int64_t i = 0, r = first; i < tiles.count; r += tiles.size(i++)) {
          tile.rows = {x_ + r * x_row_, x_row_, x_scales_ + r};
          tile.out = gates_ + r * S * Hp_;
          with_rows<most>(tiles.size(i), [&](auto n) {
            if constexpr (n > 0) quantized_linear<n, S, v>(tile);
          });
        }
      });
    }
  }

  // Steps take the units forwards and backwards in turn: the weights read last, which are still in
  // cache, come first in the next step.
  void step(int64_t t, int64_t first, Range rows, int64_t copy, Range groups) const {
    QuantizedGates tile;
    tile.matrix = w_hh_;
    tile.hidden_bias = hidden_bias_;
    tile.gates_row = S * Hp_, tile.gates_slot = Hp_;
    tile.h_prev_row = p_.R(), tile.state_row = p_.H, tile.h_row = p_.P ? Hp_ : p_.H;
    const float* const h_prev = t ? output(t - 1) : p_.states[0];
    float* const h = p_.P ? hidden_ : output(t);
    for (int64_t i = 0; i < groups.size(); ++i) {
      const int64_t group = t % 2 ? groups.end - 1 - i : groups.begin + i;
      const int64_t nv = groups_.size(group);
      tile.unit = groups_.begin(group) * L;
      tile.units = least(p_.H - tile.unit - (nv - 1) * L, L);
      with_vectors_of<kVectors>(nv, [&](auto v) {
        constexpr int most = tile_rows(S * v);
        const Tiles tiles(rows.size(), most);
        for (int64_t j = 0, b = rows.begin; j < tiles.count; b += tiles.size(j++)) {
          tile.rows = {h_ + (copy + b) * h_row_, h_row_, h_scales_ + copy + b};
          tile.gates = gates_ + (first + b - rows.begin) * S * Hp_;
          tile.h_prev = h_prev + b * tile.h_prev_row;
          for (int i = 1; i < C::states; ++i) tile.states[i] = p_.states[i] + b * p_.H;
          tile.h = h + b * tile.h_row;
          with_rows<most>(tiles.size(j), [&](auto n) {
            if constexpr (n > 0) quantized_gates<C, n, v>(tile);
          });
        }
      });
    }
  }

  // With a projection: h = W_hr times what the cell left.
  void project_output(int64_t t, Range rows, int64_t copy, const Team& team) const {
    const Range groups = group_share(outputs_, plan_, team);
    QuantizedLinear tile;
    tile.matrix = w_hr_;
    tile.bias = nullptr;
    tile.bias_slot = tile.out_slot = 0;
    tile.out_row = p_.P;
    for (int64_t group = groups.begin; group < groups.end; ++group) {
      const int64_t nv = outputs_.size(group);
      tile.unit = outputs_.begin(group) * L;
      tile.units = least(p_.P - tile.unit - (nv - 1) * L, L);
      with_vectors_of<kGroup>(nv, [&](auto v) {
        constexpr int most = tile_rows(v);
        const Tiles tiles(rows.size(), most);
        for (int64_t j = 0, b = rows.begin; j < tiles.count; b += tiles.size(j++)) {
          tile.rows = {hidden_q_ + (copy + b) * hidden_row_, hidden_row_,
                       hidden_scales_ + copy + b};
          tile.out = output(t) + b * p_.P;
          with_rows<most>(tiles.size(j), [&](auto n) {
            if constexpr (n > 0) quantized_linear<n, 1, v>(tile);
          });
        }
      });
    }
  }

  // The values of a range of groups.
  static Range values_of(const Groups& all, Range groups, int64_t n) {
    return {least(all.begin(groups.begin) * L, n), least(all.begin(groups.end) * L, n)};
  }

  // By now every thread has read the h of before the call: the team met after quantising the input.
  void finish(Range rows, Range groups, const Team& team) const {
    const Range mine = p_.P ? values_of(outputs_, group_share(outputs_, plan_, team), p_.P)
                            : values_of(groups_, groups, p_.H);
    for (int64_t b = rows.begin; b < rows.end; ++b)
      convert(p_.states[0] + b * p_.R() + mine.begin, output(p_.T - 1) + b * p_.R() + mine.begin,
              mine.size());
  }

  // Calls call(v) with v, the number of vectors, as a constant; it is at most kMost.
  template <int kMost, class Call>
  FUSEDRNN_INLINE static void with_vectors_of(int64_t v, Call call) {
    if constexpr (kMost == 1)
      call(std::integral_constant<int, 1>());
    else
      with_vectors(v, [&](auto n) {
        if constexpr (n <= kMost) call(n);
      });
  }

  const QuantizedProblem& p_;
  const Plan& plan_;
  const int64_t Hp_, x_row_, h_row_, hidden_row_;
  const Groups groups_, outputs_;  // of units; of projected values
  QuantizedMatrix w_ih_, w_hh_, w_hr_;
  const float *bias_, *hidden_bias_;
  uint8_t *x_, *h_, *hidden_q_ = nullptr;
  float *x_scales_, *h_scales_, *hidden_scales_ = nullptr, *gates_, *hidden_ = nullptr;
};

// Runs forward and returns how many bytes of scratch that takes; if scratch is null, only the
// latter.
template <class C>
int64_t quantized(const QuantizedProblem& p, const Plan& plan, ParallelFor parallel_for,
                  void* scratch) {
  Arena arena(scratch);
  struct Context {
    QuantizedWalk<C> walk;
    Barrier barrier;
  } context{QuantizedWalk<C>(p, plan, arena), {}};
  if (scratch)
    run_team(
        parallel_for, plan.threads, time_alone(p),
        [](int rank, int size, void* context_) {
          Context& c = *static_cast<Context*>(context_);
          c.walk.run(Team{rank, size, &c.barrier});
        },
        &context);
  return arena.bytes();
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
