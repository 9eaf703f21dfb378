// The register tiles of a cell that is a program. They compute the same products as those of a
// compiled cell, block by block, and leave the sums in memory that stays in L1, where the program
// finds them. What is done for each tile is kept to a minimum: the pipeline is to be at the next
// tile's product while it finishes the program of this one.
#pragma once

#include "gate_tile.h"
#include "grad_tile.h"
#include "interpreter.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

// The products of a block: W accumulators, of which the first kProducts get the product of h, and
// the last kInputs the input's. With kApart, the first one begins with a bias of its own.
template <int R, int W, int kProducts, int kInputs, bool kApart, class E, class F>
__attribute__((noinline)) void block_tile(const GateTile<E, F>& t, const BlockStart<E, F>& start) {
  constexpr int kRows = R ? R : 1;
  Vec<F> acc[kRows][W];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < W; ++n)
      acc[r][n] = kApart && n == 0 ? load(t.hidden_bias + r * t.hidden_bias_row)
                                   : load(start.sums + r * start.row + (n - kApart) * start.slot);
  if constexpr (kInputs > 0)
    multiply_segments<R, kInputs, E, F, W - kInputs>(acc, t.inputs, {1, t.I, 0}, start.w_ih);
  multiply_segments<R, kProducts, E, F>(acc, start.rows, {1, start.K, 0}, start.w, start.ahead);
#pragma GCC unroll 8
  for (int n = 0; n < W; ++n)
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      store(start.to + n * start.to_slot + r * start.to_row, acc[r][n]);
}

// Copies the first columns of rows, between the compute type and that of operands.
template <class From, class To>
FUSEDRNN_INLINE void copy_rows(int64_t rows, int64_t columns, const From* from, int64_t from_row,
                               To* to, int64_t to_row) {
  for (int64_t r = 0; r < rows; ++r) convert_inline(to + r * to_row, from + r * from_row, columns);
}

template <class E, class F>
RunBlock<E, F> GateTiles<E, F>::block(int64_t rows, int products, int inputs, bool apart) {
  RunBlock<E, F> found = nullptr;
  const auto find = [&](auto w, auto p, auto i, auto a) {
    with_rows<tile_rows(w)>(rows, [&](auto r) { found = block_tile<r, w, p, i, a, E, F>; });
  };
  with_vectors(products, [&](auto n) {
    constexpr std::integral_constant<int, 0> none;
    if (!apart)
      return inputs ? find(n, n, n, std::false_type()) : find(n, n, none, std::false_type());
    if (!inputs) return find(n, n, none, std::true_type());
    // The first product and the last input have no partner.
    if constexpr (n < Blocks::kWidest)
      find(std::integral_constant<int, n + 1>(), n, n, std::true_type());
  });
  return found;
}

// Sums the products of a tile.
template <class E, class F>
FUSEDRNN_INLINE void sum_products(int64_t rows, int64_t nv, const GateTile<E, F>& t) {
  constexpr int64_t L = kLanes<F>;
  for (const ProgramBlock<E, F>& block : t.program->blocks) {
    if (!block.run[0]) break;
    BlockStart<E, F> start;
    start.sums = block.is_apart ? t.hidden_bias : t.gates;
    start.sums += block.first_sum;
    start.slot = nv > 1 ? L : block.is_apart ? t.hidden_bias_slot : t.gates_slot;
    start.row = block.is_apart ? t.hidden_bias_row : t.gates_row;
    start.rows = block.is_input ? t.inputs : t.rows;
    start.K = block.is_input ? t.I : t.K;
    start.ahead = block.is_input ? nullptr : t.ahead;
    start.w = (block.is_input ? t.w_ih : t.w) + block.w;
    start.w_ih = t.w_ih + block.w_ih;
    start.to = t.scratch->sums + block.to;
    start.to_slot = nv > 1 ? L : t.scratch->slot, start.to_row = t.scratch->row;
    block.run[(nv - 1) * (kTileRows + 1) + rows](t, start);
  }
}

template <class E, class F>
void run_program_tile(bool project, int64_t rows, int64_t nv, const GateTile<E, F>& t) {
  constexpr int64_t L = kLanes<F>;
  constexpr bool kConvert = !std::is_same_v<E, F>;
  const ProgramGates<E, F>& program = *t.program;
  ProgramScratch<F>& at = *t.scratch;
  const int64_t R = rows ? rows : 1, columns = (nv - 1) * L + t.units;
  sum_products(rows, nv, t);
  at.number(program.pass);
  at[Space::product] = at.sums;
  at[Space::late] = project ? at.sums + program.late_sums : const_cast<F*>(t.gates) + program.late;
  at[Space::state] = t.states;
  at[Space::handed] = t.handed;
  at[Space::weight] = const_cast<F*>(t.unit_weights);
  at[Space::saved] = t.save ? t.save : at.unsaved;
  if constexpr (kConvert) {
    if (program.reads_h) copy_rows(R, nv * L, t.h_prev, t.h_prev_row, at.h, at.row);
  } else {
    at[Space::h] = const_cast<F*>(t.h_prev);
    at[Space::result] = t.result;
  }
  run_pass<F>(program.pass, at.base, {R, nv});
  const F* const result = at[Space::result];
  const int64_t row = kConvert ? at.row : t.result_row;
  if constexpr (kConvert) copy_rows(R, nv * L, result, row, t.result, t.result_row);
  if (t.y) copy_rows(R, columns, result, row, t.y, t.y_row);
}

template <class E, class F>
void run_program_tile(int64_t rows, int64_t nv, const GradTile<E, F>& t) {
  constexpr int64_t L = kLanes<F>;
  constexpr bool kConvert = !std::is_same_v<E, F>;
  const ProgramGrads<F>& program = *t.program;
  ProgramScratch<F>& at = *t.scratch;
  const int64_t R = rows ? rows : 1;
  // Far away, as in grad_tile.h.
  for (int64_t r = 0; r < R; ++r)
    for (int64_t v = 0; v < nv; ++v) {
      for (int g = 0; g < program.saved; ++g)
        __builtin_prefetch(t.saved + r * t.saved_row + g * t.Hp + v * L);
      if (t.dy) __builtin_prefetch(t.dy + r * t.dy_row + v * L);
    }
  LinearTile<E, F> product;
  for (int64_t r = 0; r < R; ++r)
    product.rows[r] = t.rows[r], product.out[r] = at.sums + r * at.row;
  product.segments = t.segments, product.w = t.w, product.ahead = t.ahead;
  product.column_stride = product.columns = L;
  linear(rows, nv, product);
  for (int64_t r = 0; r < R; ++r)
    for (int64_t v = 0; v < nv; ++v) {
      F* const d = at.sums + r * at.row + v * L;
      Vec<F> kept = {};
      store(d, incoming(t, r, v * L, v == nv - 1 ? t.units : L, load(d), kept));
      if (t.keep) store(at.kept + r * at.row + v * L, kept);
    }
  at.number(program.pass);
  at[Space::of_result] = at.sums;
  at[Space::saved] = const_cast<F*>(t.saved);
  at[Space::state] = t.dstates;
  at[Space::carry] = t.carry;
  at[Space::handed] = t.handed;
  at[Space::weight] = const_cast<F*>(t.unit_weights);
  if constexpr (kConvert) {
    if (program.reads_h) copy_rows(R, nv * L, t.h, t.h_row, at.h, at.row);
  } else {
    at[Space::h] = const_cast<F*>(t.h);
    at[Space::gradient] = t.grad;
  }
  run_pass<F>(program.pass, at.base, {R, nv});
  for (int64_t r = 0; t.keep && r < R; ++r)
    for (int64_t v = 0; v < nv; ++v) {
      F* const carry = t.carry + r * t.carry_row + v * L;
      const Vec<F> kept = load(at.kept + r * at.row + v * L);
      store(carry, program.has_carry ? load(carry) + kept : kept);
    }
  if (t.result) copy_rows(R, nv * L, at.result, at.row, t.result, t.result_row);
  if constexpr (kConvert)
    for (int g = 0; g < program.grads; ++g)
      if (program.gradients >> g & 1)
        copy_rows(R, nv * L, at.gradients + g * at.slot, at.row, t.grad + g * t.Hp, t.grad_row);
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
