// The register tile of a forward step: products of some rows with a group of units, and from the
// accumulators straight through the cell to c, h, y and the reserve.
#pragma once

#include "cells/cell.h"
#include "dispatch.h"
#include "tile.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

// One tile of the walk: rows x the units of one group.
template <class E, class F>
struct GateTile {
  const E* rows[8];  // h_prev, all of it: the operand of the product
  int64_t K;         // 0: the product is already in the gates
  const E* w;
  const char* ahead;   // see Ahead
  const E* inputs[8];  // input projected here: its rows and panel
  int64_t I;
  const E* w_ih;
  const F* gates;        // what the product is added to, from this group's first unit on
  const F* hidden_bias;  // GRU: starts n'
  int64_t hidden_bias_row;
  const E* h_prev;  // this group's units
  F* c;
  E* h;
  E* y;     // null: not wanted here
  F* save;  // null: not wanted
  int64_t gates_row, gates_slot, h_prev_row, c_row, h_row, y_row, save_row, save_slot;
  int64_t units;  // valid ones in the last vector
};

// Vectors of units in a group. Two fill a part's tile well enough, with a third of the code of
// four.
template <class C>
constexpr int kGateVectors = C::products > 1 ? 1
                             : is_part<C>    ? 2
                                             : kGroup;

// Accumulators that a row of a tile has for each vector of units: one for each gate. Where the
// input is projected in the tile, the GRU's candidate has two, one in and one beside the reset's
// reach.
template <class C>
constexpr int accumulators(bool project) {
  return C::products + (project && C::has_late_input);
}

// The input is projected here (kProject), or has been into `gates`.
template <class C, bool kProject, int R, int NV, class E, class F>
__attribute__((noinline)) void gate_tile(const GateTile<E, F>& t) {
  constexpr int kRows = R ? R : 1, L = kLanes<F>, kWidth = accumulators<C>(kProject) * NV;
  constexpr bool kLate = kWidth > C::products * NV;  // the input's own accumulator comes last
  Vec<F> acc[kRows][kWidth];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int g = 0; g < C::products; ++g)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        constexpr auto input = C::input_of_product;
        acc[r][g * NV + v] =
            input(g) < 0 ? load(t.hidden_bias + r * t.hidden_bias_row + v * L)
                         : load(t.gates + r * t.gates_row + input(g) * t.gates_slot + v * L);
      }
  const auto late_input = [&](int r, int v) __attribute__((always_inline)) {
    return load(t.gates + r * t.gates_row + (C::inputs - 1) * t.gates_slot + v * L);
  };
  if constexpr (kProject) {
    if constexpr (kLate)
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[r][C::products * NV + v] = late_input(r, v);
    constexpr int kFirst = kLate ? NV : 0;
    multiply_segments<R, C::inputs * NV, E, F, kFirst>(acc, t.inputs, {1, t.I, 0}, t.w_ih);
  }
  multiply_segments<R, C::products * NV, E, F>(acc, t.rows, {1, t.K, 0}, t.w, t.ahead);
  // Through memory if there are several vectors, so that the cell is a loop over them.
  F sums[NV > 1 ? kRows * kWidth * L : 1];
  if constexpr (NV > 1) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int n = 0; n < kWidth; ++n) store(sums + (r * kWidth + n) * L, acc[r][n]);
  }
  const auto sum = [&](int r, int n) __attribute__((always_inline)) {
    if constexpr (NV > 1)
      return load(sums + (r * kWidth + n) * L);
    else
      return acc[r][n];
  };
  using P = Pack<F, kRows>;
#pragma GCC unroll 1
  for (int v = 0; v < NV; ++v) {
    P product[C::products], save[C::saved ? C::saved : 1], c = {}, h, h_prev = {}, late = {};
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int g = 0; g < C::products; ++g) product[g].at[r] = sum(r, g * NV + v);
      if constexpr (C::has_late_input)
        late.at[r] = kLate ? sum(r, kWidth - NV + v) : late_input(r, v);
      if constexpr (C::has_carry) h_prev.at[r] = load(t.h_prev + r * t.h_prev_row + v * L);
      if constexpr (C::has_c) c.at[r] = load(t.c + r * t.c_row + v * L);
    }
    C::template forward<PackMath<F, kRows>>(product, late, h_prev, c, h, save);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      if constexpr (C::has_c) store(t.c + r * t.c_row + v * L, c.at[r]);
      store(t.h + r * t.h_row + v * L, h.at[r]);
      if (t.y) store_n(t.y + r * t.y_row + v * L, h.at[r], v == NV - 1 ? t.units : L);
      if (C::saved && t.save)
#pragma GCC unroll 8
        for (int g = 0; g < C::saved; ++g)
          store(t.save + r * t.save_row + g * t.save_slot + v * L, save[g].at[r]);
    }
  }
}

// The tiles of a cell's parts, for any number of rows (0: the lone row) and vectors. As `linear`
// they are compiled once: what half precision multiplies as float32 is single precision's.
template <class E, class F>
struct GateTiles {
  using Run = void (*)(bool project, int64_t rows, int64_t vectors, const GateTile<E, F>&);
  Run first, last;

  static GateTiles of(Cell cell);

 private:
  template <class Part>
  static void run(bool project, int64_t rows, int64_t vectors, const GateTile<E, F>& tile) {
    project ? run<Part, true>(rows, vectors, tile) : run<Part, false>(rows, vectors, tile);
  }
  template <class Part, bool kProject>
  static void run(int64_t rows, int64_t vectors, const GateTile<E, F>& tile) {
    with_vectors(vectors, [&](auto v) {
      if constexpr (v <= kGateVectors<Part>)
        with_rows<tile_rows(accumulators<Part>(kProject) * v)>(
            rows, [&](auto r) { gate_tile<Part, kProject, r, v, E, F>(tile); });
    });
  }
};

template <class E, class F>
GateTiles<E, F> GateTiles<E, F>::of(
    Cell cell) {  // out of the class: what is inline would be compiled anyway
  return with_cell(cell, [](auto c) {
    using C = decltype(c);
    return GateTiles{run<typename C::First>, run<typename C::Last>};
  });
}

extern template struct GateTiles<float, float>;
extern template struct GateTiles<double, double>;
#if defined(__AVX512BF16__)
extern template struct GateTiles<BFloat16, float>;
#endif

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
