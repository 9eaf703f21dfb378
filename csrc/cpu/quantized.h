// Forward of one layer with int8 weights: a walk over the steps by a team of threads, as forward.h.
//
//   chunk     quantise x;  gates of the chunk's rows = bias + x W_ih^T, as one product
//     step    gates + h W_hh^T in registers, from there straight through the cell to h, float32
//             quantise h
//
// Only what is multiplied is ever int8. A thread computes just the gates that it will itself
// consume. h is the output, read from where the step before wrote it. Where units
// are split, every thread quantises all of h for itself: that is much less work than the product,
// and it leaves one barrier a step.
//
//   x, gates  [row of the chunk]           rows of a thread together: begin * steps + (s - s0) * n
//   h         [thread, if units are split][B]
#pragma once

#include "../cell.h"
#include "int8.h"
#include "walk.h"

namespace fusedrnn {
namespace FUSEDRNN_ISA {

// A matrix in the buffer, by units.
struct QuantizedMatrix {
  const int8_t* panels = nullptr;
  const int32_t* starts = nullptr;
  const float* scales = nullptr;
  int64_t slots = 0, quads = 0;

  QuantizedMatrix() = default;
  QuantizedMatrix(const char* packed, const QuantizedPlace& place)
      : panels(reinterpret_cast<const int8_t*>(packed + place.panels)),
        starts(reinterpret_cast<const int32_t*>(packed + place.starts)),
        scales(reinterpret_cast<const float*>(packed + place.scales)),
        slots(place.slots),
        quads(place.quads) {}

  FUSEDRNN_INLINE const int8_t* panel(int64_t unit) const {
    return panels +
           (unit / kHiddenPadding * quads * slots * kHiddenPadding + unit % kHiddenPadding) * kQuad;
  }
  FUSEDRNN_INLINE int64_t at(int64_t slot, int64_t unit) const {
    return (unit / kHiddenPadding * slots + slot) * kHiddenPadding + unit % kHiddenPadding;
  }
};

// Rows of quantised activations, from a tile's first on.
struct QuantizedRows {
  const uint8_t* values;
  int64_t stride;
  const float* scales;
};

// out[r][slot * NV + v] = rows[r] . the panels of NV vectors from `unit` on; exact.
template <int R, int S, int NV>
FUSEDRNN_INLINE void multiply_quantized(Sums (&out)[R][S * NV], const QuantizedRows& rows,
                                        const QuantizedMatrix& m, int64_t unit) {
  constexpr int N = S * NV, kStep = S * kHiddenPadding * kQuad;
  constexpr int64_t L = kLanes<float>;
  // One row's chains of sums are too few to hide the latency of an instruction.
  constexpr int kChains = R == 1 ? (kAccumulators == 24 ? 4 : 2) : 1;
  const int8_t* w[NV];
  Sums chain[kChains][R][N] = {};
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    w[v] = m.panel(unit + v * L);
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        chain[0][r][s * NV + v] = load_sums(m.starts + m.at(s, unit + v * L));
  }
  const auto step = [&](int64_t q, int j) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const QuadsOfUnits units(w[n % NV] + q * kStep + n / NV * kHiddenPadding * kQuad);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        chain[j][r][n] = add_products(chain[j][r][n],
                                      QuadOfRow(rows.values + r * rows.stride + q * kQuad), units);
    }
  };
  int64_t q = 0;
  for (; q + kChains <= m.quads; q += kChains)
#pragma GCC unroll 4
    for (int j = 0; j < kChains; ++j) step(q + j, j);
  for (; q < m.quads; ++q) step(q, 0);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      out[r][n] = chain[0][r][n];
#pragma GCC unroll 4
      for (int j = 1; j < kChains; ++j) out[r][n] += chain[j][r][n];
    }
}

// What a product of sums amounts to, added to `to`.
FUSEDRNN_INLINE Vec<float> add_scaled(Vec<float> to, Sums sums, float row, const float* units) {
  return Math<float>::multiply_add(__builtin_convertvector(sums, Vec<float>), row * load(units),
                                   to);
}

// out = bias + rows * matrix, for all slots of some vectors of units.
struct QuantizedLinear {
  QuantizedRows rows;
  QuantizedMatrix matrix;
  const float* bias;  // slots bias_slot apart; null: zeros
  float* out;
  int64_t unit, bias_slot, out_row, out_slot;
  int64_t units;  // to be written of the last vector
};

template <int R, int S, int NV>
__attribute__((noinline)) void quantized_linear(const QuantizedLinear& t) {
  constexpr int64_t L = kLanes<float>;
  Sums sums[R][S * NV];
  multiply_quantized<R, S, NV>(sums, t.rows, t.matrix, t.unit);
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      const int64_t unit = t.unit + v * L;
      const float* const scales = t.matrix.scales + t.matrix.at(s, unit);
      const Vec<float> start = t.bias ? load(t.bias + s * t.bias_slot + unit) : Vec<float>{};
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        store_n(t.out + r * t.out_row + s * t.out_slot + unit,
                add_scaled(start, sums[r][s * NV + v], t.rows.scales[r], scales),
                v == NV - 1 ? t.units : L);
    }
}

// One tile of a step: rows x some vectors of units.
struct QuantizedGates {
  QuantizedRows rows;
  QuantizedMatrix matrix;
  const float* gates;  // the input's part
  const float* hidden_bias;
  const float* h_prev;
  float* c;
  float* h;
  int64_t unit, gates_row, gates_slot, h_prev_row, c_row, h_row;
  int64_t units;  // valid ones of the last vector
};

template <class C, int R, int NV>
__attribute__((noinline)) void quantized_gates(const QuantizedGates& t) {
  constexpr int64_t L = kLanes<float>;
  constexpr int S = C::products;
  Sums sums[R][S * NV];
  multiply_quantized<R, S, NV>(sums, t.rows, t.matrix, t.unit);
  using P = Pack<float, R>;
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    const int64_t unit = t.unit + v * L, valid = v == NV - 1 ? t.units : L;
    P product[S], save[C::saved ? C::saved : 1], c = {}, h, h_prev = {}, late = {};
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      const float* const scales = t.matrix.scales + t.matrix.at(s, unit);
      const int input = C::input_of_product(s);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec<float> start =
            load(input < 0 ? t.hidden_bias + unit
                           : t.gates + r * t.gates_row + input * t.gates_slot + unit);
        product[s].at[r] = add_scaled(start, sums[r][s * NV + v], t.rows.scales[r], scales);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if constexpr (C::has_late_input)
        late.at[r] = load(t.gates + r * t.gates_row + (C::inputs - 1) * t.gates_slot + unit);
      if constexpr (C::has_carry) h_prev.at[r] = load_n(t.h_prev + r * t.h_prev_row + unit, valid);
      if constexpr (C::has_c) c.at[r] = load_n(t.c + r * t.c_row + unit, valid);
    }
    C::template forward<PackMath<float, R>>(product, late, h_prev, c, h, save);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if constexpr (C::has_c) store_n(t.c + r * t.c_row + unit, c.at[r], valid);
      store_n(t.h + r * t.h_row + unit, h.at[r], valid);
    }
  }
}

template <class C>
class QuantizedWalk {
  static constexpr int64_t L = kLanes<float>;
  static constexpr int S = C::products;
  static constexpr int kVectors = S == 1 ? kGroup : 1;  // of units in a tile

 public:
  QuantizedWalk(const QuantizedProblem& p, const Plan& plan, Layout& layout)
      : p_(p),
        plan_(plan),
        Hp_(p.Hp()),
        x_row_(quantized_row(p.I)),
        h_row_(quantized_row(p.R())),
        hidden_row_(quantized_row(p.H)),
        groups_(make_groups(p.H, L, kVectors, plan)),
        outputs_(make_groups(p.P, L, kGroup, plan)) {
    const QuantizedLayout places(p);
    w_ih_ = QuantizedMatrix(p.packed, places.w_ih);
    w_hh_ = QuantizedMatrix(p.packed, places.w_hh);
    w_hr_ = QuantizedMatrix(p.packed, places.w_hr);
    bias_ = reinterpret_cast<const float*>(p.packed + places.bias);
    hidden_bias_ = reinterpret_cast<const float*>(p.packed + places.hidden_bias);
    const int64_t rows = plan.forward_steps * p.B;
    const int64_t copies = plan.split == Split::units ? plan.threads : 1;
    x_ = layout.take<uint8_t>(rows * x_row_);
    x_scales_ = layout.take<float>(rows);
    gates_ = layout.take<float>(rows * S * Hp_);
    h_ = layout.take<uint8_t>(copies * p.B * h_row_);
    h_scales_ = layout.take<float>(copies * p.B);
    if (!p.P) return;
    hidden_ = layout.take<float>(p.B * Hp_);
    hidden_q_ = layout.take<uint8_t>(copies * p.B * hidden_row_);
    hidden_scales_ = layout.take<float>(copies * p.B);
  }

  void run(const Team& team) const {
    const bool split = plan_.split == Split::units;
    const Range rows =
        split || plan_.split == Split::none ? Range{0, p_.B} : share(p_.B, team.rank, team.size);
    const Range groups = group_share(groups_, plan_, team);
    const int64_t copy = split ? team.rank * p_.B : 0;  // this thread's copies of h begin there
    quantize(p_.h, p_.R(), p_.R(), rows, copy, h_, h_row_, h_scales_);
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

  // Of n values each.
  void quantize(const float* from, int64_t stride, int64_t n, Range rows, int64_t copy, uint8_t* to,
                int64_t to_stride, float* scales) const {
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      scales[copy + b] = quantize_row(from + b * stride, n, to + (copy + b) * to_stride);
    }
  }

  // By the team together where units are split, since every thread needs all of it.
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

  // Units forwards and backwards in turn: the weights last read, still in cache, come first.
  void step(int64_t t, int64_t first, Range rows, int64_t copy, Range groups) const {
    QuantizedGates tile;
    tile.matrix = w_hh_;
    tile.hidden_bias = hidden_bias_;
    tile.gates_row = S * Hp_, tile.gates_slot = Hp_;
    tile.h_prev_row = p_.R(), tile.c_row = p_.H, tile.h_row = p_.P ? Hp_ : p_.H;
    const float* const h_prev = t ? output(t - 1) : p_.h;
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
          tile.c = p_.c + b * tile.c_row;
          tile.h = h + b * tile.h_row;
          with_rows<most>(tiles.size(j), [&](auto n) {
            if constexpr (n > 0) quantized_gates<C, n, v>(tile);
          });
        }
      });
    }
  }

  // Projected: h = W_hr (o tanh(c)).
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

  // Here every thread has read h before the call: the team met after it had quantised the input.
  void finish(Range rows, Range groups, const Team& team) const {
    const Range mine = p_.P ? values_of(outputs_, group_share(outputs_, plan_, team), p_.P)
                            : values_of(groups_, groups, p_.H);
    for (int64_t b = rows.begin; b < rows.end; ++b)
      convert(p_.h + b * p_.R() + mine.begin, output(p_.T - 1) + b * p_.R() + mine.begin,
              mine.size());
  }

  // Calls function<v>() for v vectors, at most kMost of them.
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

// Scratch bytes that forward needs (scratch null), or forward itself.
template <class C>
int64_t quantized(const QuantizedProblem& p, const Plan& plan, ParallelFor parallel_for,
                  void* scratch) {
  Layout layout(scratch);
  struct Context {
    QuantizedWalk<C> walk;
    Barrier barrier;
  } context{QuantizedWalk<C>(p, plan, layout), {}};
  if (scratch)
    run_team(
        parallel_for, plan.threads,
        [](int rank, int size, void* context_) {
          Context& c = *static_cast<Context*>(context_);
          c.walk.run(Team{rank, size, &c.barrier});
        },
        &context);
  return layout.bytes();
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn
