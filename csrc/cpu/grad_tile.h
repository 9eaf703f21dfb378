// The register tile of a backward step. It computes dh for some rows and a group of units, and
// takes it from the accumulators straight through the cell to dgates and dc.
#pragma once

#include "cells/list.h"
#include "spaces.h"
#include "tile.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

// A stage of a program as its tiles run it in backward.
template <class F>
struct ProgramGrads {
  BoundPass<F> pass;
  int saved = 0, grads = 0;  // of the whole cell
  uint64_t gradients = 0;    // a bit for each slot that this stage writes
  bool has_carry = false, reads_h = false;
};

// One tile of the walk: rows x the units of one group.
template <class E, class F>
struct GradTile {
  const E* rows[8];   // the product's operand
  Segments segments;  // count 0: no product
  const E* w;
  const char* ahead;      // see Ahead
  const F* dy;            // null: zero
  const F* carry_in;      // added to the product; null: zero
  F* carry;               // where the cell leaves its carry; all but the last stage read it first
  const F* saved;         // of all stages
  const E* h;             // h_prev or what the cell gave as h, whichever it needs
  F* dstates;             // of the states after h
  const F* unit_weights;  // [unit weights][Hp]
  E* grad;                // of all stages
  E* result;              // the stage's result in forward, restored; null: not wanted
  const F* factor;        // of the product; null: 1. Rows of Hp, as `keep`
  const F* keep;          // the share of h before the step that stays in h; null: none
  int64_t dy_row, carry_row, saved_row, h_row, dstate_row, dstate_slot, grad_row, result_row, Hp;
  int64_t units;  // valid ones in the last vector
  // If the cell is a program, its stage, what a later stage leaves for an earlier one, and the
  // thread's memory; else null.
  const ProgramGrads<F>* program;
  F* handed;
  ProgramScratch<F>* scratch;
};

// What forward kept is far away, in pieces that the hardware does not foresee. It is fetched while
// the product is computed.
template <class S, int kRows, int NV, class E, class F>
FUSEDRNN_INLINE void prefetch(const GradTile<E, F>& t) {
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < S::saved; ++g)
      for (int v = 0; v < NV; ++v)
        __builtin_prefetch(t.saved + r * t.saved_row + (S::first_slot + g) * t.Hp + v * kLanes<F>);
    if (t.dy)
      for (int v = 0; v < NV; ++v) __builtin_prefetch(t.dy + r * t.dy_row + v * kLanes<F>);
  }
}

// The gradient of the result of row r and one vector of units, from what came by the product. What
// h keeps of the state before passes the cell by, and goes to `kept`.
template <class E, class F>
FUSEDRNN_INLINE Vec<F> incoming(const GradTile<E, F>& t, int64_t r, int64_t unit, int64_t valid,
                                Vec<F> d, Vec<F>& kept) {
  if (t.factor) d *= load(t.factor + r * t.Hp + unit);
  if (t.dy) d += load_n(t.dy + r * t.dy_row + unit, valid);
  if (t.carry_in) d += load(t.carry_in + r * t.carry_row + unit);
  if (t.keep) {
    kept = d * load(t.keep + r * t.Hp + unit);
    d -= kept;
  }
  return d;
}

template <class S, int R, int NV, class E, class F>
__attribute__((noinline)) void grad_tile(const GradTile<E, F>& t) {
  using C = typename S::Whole;
  constexpr int kRows = R ? R : 1, L = kLanes<F>;
  prefetch<S, kRows, NV>(t);
  Vec<F> acc[kRows][NV] = {};
  multiply_segments<R, NV, E, F>(acc, t.rows, t.segments, t.w, t.ahead);
  // Sums go through memory, so that the cell is a loop. Unrolled, its code would be most of the
  // library.
  F sums[kRows * NV * L];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) store(sums + (r * NV + v) * L, acc[r][v]);
#pragma GCC unroll 1
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 1
    for (int v = 0; v < NV; ++v) {
      Vec<F> kept = {};
      Backward<S, Vec<F>> unit;
      unit.dresult =
          incoming(t, r, v * L, v == NV - 1 ? t.units : L, load(sums + (r * NV + v) * L), kept);
#pragma GCC unroll 8
      for (int g = 0; g < S::saved; ++g)
        unit.save[g] = load(t.saved + r * t.saved_row + (S::first_slot + g) * t.Hp + v * L);
      if constexpr (S::backward_needs != Needs::nothing) unit.h = load(t.h + r * t.h_row + v * L);
      if constexpr (S::has_carry && !is_last<S>)
        unit.carry = load(t.carry + r * t.carry_row + v * L);
#pragma GCC unroll 8
      for (int i = 0; i < C::states - 1; ++i)
        unit.dstate[i] = load(t.dstates + i * t.dstate_slot + r * t.dstate_row + v * L);
#pragma GCC unroll 8
      for (int i = 0; i < C::unit_weights; ++i)
        unit.unit_weight[i] = load(t.unit_weights + i * t.Hp + v * L);
      S::template backward<Math<F>>(unit);
#pragma GCC unroll 8
      for (int i = 0; i < C::states - 1; ++i)
        store(t.dstates + i * t.dstate_slot + r * t.dstate_row + v * L, unit.dstate[i]);
      if constexpr (S::has_carry) {
        store(t.carry + r * t.carry_row + v * L, t.keep ? unit.carry + kept : unit.carry);
      } else {
        if (t.keep) store(t.carry + r * t.carry_row + v * L, kept);
      }
      if constexpr (S::restores)
        if (t.result) store(t.result + r * t.result_row + v * L, unit.result);
#pragma GCC unroll 8
      for (int g = 0; g < S::grads; ++g)
        store(t.grad + r * t.grad_row + (S::first_slot + g) * t.Hp + v * L, unit.grad[g]);
    }
  }
}

// The tiles of a program's stages: program_tile.h.
template <class E, class F>
void run_program_tile(int64_t rows, int64_t vectors, const GradTile<E, F>& tile);

// The tiles of all stages of a cell, as GateTiles for forward.
template <class E, class F>
struct GradTiles {
  void (*stage[kMaxStages])(int64_t rows, int64_t vectors, const GradTile<E, F>&);

  static GradTiles of(const Shape& shape);
};

// Defined outside the class: an inline function would be compiled wherever it is used.
template <class E, class F>
GradTiles<E, F> GradTiles<E, F>::of(const Shape& shape) {
  if (shape.program) {
    GradTiles tiles{};
    for (auto& stage : tiles.stage) stage = run_program_tile<E, F>;
    return tiles;
  }
  return with_cell(shape.cell, [](auto c) {
    GradTiles tiles{};
    for_each_stage<decltype(c)>([&](auto s) {
      using S = decltype(s);
      tiles.stage[S::index] = [](int64_t rows, int64_t vectors, const GradTile<E, F>& tile) {
        with_vectors(vectors, [&](auto v) {
          if constexpr (v <= kGroup)
            with_rows<tile_rows(v)>(rows, [&](auto r) { grad_tile<S, r, v, E, F>(tile); });
        });
      };
    });
    return tiles;
  });
}

extern template struct GradTiles<float, float>;
extern template struct GradTiles<double, double>;
#if defined(__AVX512BF16__)
extern template struct GradTiles<BFloat16, float>;
#endif

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
