// The register tile of a backward step: dh of some rows and a group of units, and from the
// accumulators straight through the cell to dgates and dc.
#pragma once

#include "cells/cell.h"
#include "dispatch.h"
#include "tile.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

// One tile of the walk: rows x the units of one group.
template <class E, class F>
struct GradTile {
  const E* rows[8];   // operand of the product
  Segments segments;  // count 0: no product
  const E* w;
  const char* ahead;  // see Ahead
  const F* dy;        // null: zero
  const F* carry_in;  // null: zero
  F* carry_out;       // GRU
  const F* saved;
  const E* h;  // GRU: h_prev; RNN: h
  F* dc;       // LSTM; a part of a cell: what passes by the products
  E* grad;
  E* hidden;  // what the cell makes of h: projected o tanh(c), a part's operand; null: not wanted
  int64_t dy_row, carry_row, saved_row, h_row, dc_row, grad_row, hidden_row, Hp;
  int64_t units;  // valid ones in the last vector
};

// What forward kept comes from far away, in pieces that the hardware does not foresee: it is on its
// way while the product is computed.
template <class C, int kRows, int NV, class E, class F>
FUSEDRNN_INLINE void prefetch(const GradTile<E, F>& t) {
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < C::saved; ++g)
      for (int v = 0; v < NV; ++v)
        __builtin_prefetch(t.saved + r * t.saved_row + g * t.Hp + v * kLanes<F>);
    if (t.dy)
      for (int v = 0; v < NV; ++v) __builtin_prefetch(t.dy + r * t.dy_row + v * kLanes<F>);
  }
}

template <class C, int R, int NV, class E, class F>
__attribute__((noinline)) void grad_tile(const GradTile<E, F>& t) {
  constexpr int kRows = R ? R : 1, L = kLanes<F>;
  prefetch<C, kRows, NV>(t);
  Vec<F> acc[kRows][NV] = {};
  multiply_segments<R, NV, E, F>(acc, t.rows, t.segments, t.w, t.ahead);
  // Through memory, so that the cell is a loop: its code would be most of the library.
  F sums[kRows * NV * L];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) store(sums + (r * NV + v) * L, acc[r][v]);
#pragma GCC unroll 1
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 1
    for (int v = 0; v < NV; ++v) {
      Vec<F> dh = load(sums + (r * NV + v) * L);
      if (t.dy) dh += load_n(t.dy + r * t.dy_row + v * L, v == NV - 1 ? t.units : L);
      if (t.carry_in) dh += load(t.carry_in + r * t.carry_row + v * L);
      Vec<F> saved[C::saved ? C::saved : 1], grad[C::grads], h = {}, dc = {}, carry = {};
#pragma GCC unroll 8
      for (int g = 0; g < C::saved; ++g)
        saved[g] = load(t.saved + r * t.saved_row + g * t.Hp + v * L);
      if constexpr (!C::has_c || is_part<C>) h = load(t.h + r * t.h_row + v * L);
      if constexpr (C::has_c) dc = load(t.dc + r * t.dc_row + v * L);
      C::template backward<Math<F>>(saved, h, dh, dc, grad, carry);
      if constexpr (C::has_c) store(t.dc + r * t.dc_row + v * L, dc);
      if constexpr (C::has_carry && !is_part<C>)
        store(t.carry_out + r * t.carry_row + v * L, carry);
      if constexpr (C::has_c)
        if (t.hidden) store(t.hidden + r * t.hidden_row + v * L, h);
#pragma GCC unroll 8
      for (int g = 0; g < C::grads; ++g) store(t.grad + r * t.grad_row + g * t.Hp + v * L, grad[g]);
    }
  }
}

// The tiles of a cell's parts, as GateTiles has them of forward.
template <class E, class F>
struct GradTiles {
  using Run = void (*)(int64_t rows, int64_t vectors, const GradTile<E, F>&);
  Run first, last;

  static GradTiles of(Cell cell);

 private:
  template <class Part>
  static void run(int64_t rows, int64_t vectors, const GradTile<E, F>& tile) {
    with_vectors(vectors, [&](auto v) {
      if constexpr (v <= kGroup)
        with_rows<tile_rows(v)>(rows, [&](auto r) { grad_tile<Part, r, v, E, F>(tile); });
    });
  }
};

template <class E, class F>
GradTiles<E, F> GradTiles<E, F>::of(
    Cell cell) {  // out of the class: what is inline would be compiled anyway
  return with_cell(cell, [](auto c) {
    using C = decltype(c);
    return GradTiles{run<typename C::First>, run<typename C::Last>};
  });
}

extern template struct GradTiles<float, float>;
extern template struct GradTiles<double, double>;
#if defined(__AVX512BF16__)
extern template struct GradTiles<BFloat16, float>;
#endif

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
