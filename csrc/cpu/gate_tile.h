// The register tile of a forward step. It computes the products of some rows with a group of units,
// and takes them from the accumulators straight through the cell to c, h, y and the reserve.
#pragma once

#include "cells/list.h"
#include "spaces.h"
#include "tile.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

// Slots that a register tile computes together: the products and inputs from a first one on. Where
// there are both, each input is added to its product, and what has no partner stands at the ends:
//
//   products   n' r z            accumulators   n' r z n
//   inputs        r z n
struct Block {
  int product, products, input, inputs;
  int accumulators;  // if the input is projected in the tile
};

// The blocks of a stage. A compiled cell is one block, and so is a program that is like one. Other
// programs have blocks of at most kWidest slots that have partners, and others of slots that have
// none.
class Blocks {
 public:
  static constexpr int kWidest = 4, kMost = 3 * kMostGates / kWidest;

  Blocks() = default;
  explicit Blocks(const StageFacts& stage) {
    const int joint = stage.products - stage.apart;
    const int together = stage.products + stage.late;
    if (!together) return;  // the first of two stages, of a cell whose products are all later
    if (together <= kWidest && stage.apart == stage.late && stage.apart <= 1 &&
        stage.first_apart == 0) {
      blocks_[count_++] = {0, stage.products, 0, stage.inputs, together};
      return;
    }
    const int product = stage.first_apart ? 0 : stage.apart;
    const int input = stage.first_late ? 0 : stage.late;
    cut(joint, [&](int at, int n) { return Block{product + at, n, input + at, n, n}; });
    cut(stage.apart, [&](int at, int n) { return Block{stage.first_apart + at, n, 0, 0, n}; });
    cut(stage.late, [&](int at, int n) { return Block{0, 0, stage.first_late + at, n, n}; });
  }
  const Block* begin() const { return blocks_; }
  const Block* end() const { return blocks_ + count_; }
  // The accumulators of the widest block, if the input is projected in the tile, or else without.
  int widest(bool project) const {
    int most = 1;
    for (const Block& block : *this) {
      const int width = project ? block.accumulators : block.products;
      most = width > most ? width : most;
    }
    return most;
  }

 private:
  // Cuts n slots into blocks, as evenly as possible.
  template <class Make>
  void cut(int n, const Make& make) {
    const int count = (n + kWidest - 1) / kWidest;
    for (int i = 0; i < count; ++i) {
      const int begin = n * i / count;
      blocks_[count_++] = make(begin, n * (i + 1) / count - begin);
    }
  }

  Block blocks_[kMost];
  int count_ = 0;
};

template <class E, class F>
struct GateTile;

// What the accumulators of a block begin with, what is added, and where the sums go.
template <class E, class F>
struct BlockStart {
  const F* sums;
  int64_t slot, row;
  const E* const* rows;
  int64_t K;
  const E *w, *w_ih;
  const char* ahead;
  F* to;
  int64_t to_slot, to_row;
};

template <class E, class F>
using RunBlock = void (*)(const GateTile<E, F>&, const BlockStart<E, F>&);

// A block of a program's stage: the tile that sums it, for each number of vectors and of rows, and
// its places.
template <class E, class F>
struct ProgramBlock {
  RunBlock<E, F> run[kGroup * (kTileRows + 1)] = {};
  bool is_apart = false, is_input = false;  // it has only products apart, or only inputs
  int64_t first_sum = 0, w = 0, w_ih = 0, to = 0;
};

// A stage of a program as its tiles run it in forward.
template <class E, class F>
struct ProgramGates {
  BoundPass<F> pass;
  ProgramBlock<E, F> blocks[Blocks::kMost + 1];  // the first one that has no tile ends them
  int64_t late = 0, late_sums = 0;               // where the late inputs are
  bool reads_h = false;
};

// One tile of the walk: rows x the units of one group.
template <class E, class F>
struct GateTile {
  const E* rows[8];  // the product's operand, all of it: h_prev, or what the stage before left
  int64_t K;         // 0: the product is already in the gates
  const E* w;
  const char* ahead;   // see Ahead
  const E* inputs[8];  // if the input is projected here: its rows, depth and panel
  int64_t I;
  const E* w_ih;
  const F* gates;         // what products are added to, from this group's first unit on
  const F* hidden_bias;   // what products without an input are added to
  const E* h_prev;        // this group's units
  F* states;              // those after h
  F* handed;              // from stage to stage
  const F* unit_weights;  // [unit weights][Hp]
  E* result;
  E* y;     // null: not wanted here
  F* save;  // null: not wanted
  int64_t hidden_bias_row, hidden_bias_slot, gates_row, gates_slot, h_prev_row;
  int64_t state_row, state_slot, handed_slot;
  int64_t result_row, y_row, save_row, save_slot, Hp;
  int64_t units;  // valid ones in the last vector
  // If the cell is a program, its stage and the thread's memory; else null.
  const ProgramGates<E, F>* program;
  ProgramScratch<F>* scratch;
};

// Vectors of units in a group. When a cell has several stages, two vectors fill the tile of a stage
// with one product well enough, with a third of the code that four would take.
constexpr int gate_vectors(int products, int late, int stages) {
  return products > 1 || late ? 1 : stages > 1 ? 2 : kGroup;
}
constexpr int gate_vectors(const StageFacts& stage, int stages) {
  return gate_vectors(stage.products, stage.late, stages);
}
template <class S>
constexpr int kGateVectors = gate_vectors(S::products, S::late, stages_of<typename S::Whole>);

// Accumulators in a row of a tile for each vector of units: one for each product. If the input is
// projected in the tile, a late input has its own.
template <class S>
constexpr int accumulators(bool project) {
  return S::products + (project ? S::late : 0);
}

// The input is projected here (kProject), or `gates` holds its projection already.
template <class S, bool kProject, int R, int NV, class E, class F>
__attribute__((noinline)) void gate_tile(const GateTile<E, F>& t) {
  using C = typename S::Whole;
  constexpr int kRows = R ? R : 1, L = kLanes<F>, kWidth = accumulators<S>(kProject) * NV;
  constexpr bool kLate = kWidth > S::products * NV;  // the input's own accumulator comes last
  Vec<F> acc[kRows][kWidth];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int g = 0; g < S::products; ++g)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        constexpr auto input = S::input_of_product;
        acc[r][g * NV + v] =
            input(g) < 0 ? load(t.hidden_bias + r * t.hidden_bias_row + v * L)
                         : load(t.gates + r * t.gates_row + input(g) * t.gates_slot + v * L);
      }
  const auto late_input = [&](int r, int v) __attribute__((always_inline)) {
    return load(t.gates + r * t.gates_row + (S::inputs - 1) * t.gates_slot + v * L);
  };
  if constexpr (kProject) {
    if constexpr (kLate)
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[r][S::products * NV + v] = late_input(r, v);
    constexpr int kFirst = kLate ? NV : 0;
    multiply_segments<R, S::inputs * NV, E, F, kFirst>(acc, t.inputs, {1, t.I, 0}, t.w_ih);
  }
  multiply_segments<R, S::products * NV, E, F>(acc, t.rows, {1, t.K, 0}, t.w, t.ahead);
  // If there are several vectors, sums go through memory, so that the cell is a loop over vectors.
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
  using P = Rows<F, kRows>;
#pragma GCC unroll 1
  for (int v = 0; v < NV; ++v) {
    Forward<S, P> unit;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int g = 0; g < S::products; ++g) unit.product[g].at[r] = sum(r, g * NV + v);
      if constexpr (S::late > 0)
        unit.late[0].at[r] = kLate ? sum(r, kWidth - NV + v) : late_input(r, v);
      if constexpr (S::has_carry || S::reads_h)
        unit.h_prev.at[r] = load(t.h_prev + r * t.h_prev_row + v * L);
#pragma GCC unroll 8
      for (int i = 0; i < C::states - 1; ++i)
        unit.state[i].at[r] = load(t.states + i * t.state_slot + r * t.state_row + v * L);
#pragma GCC unroll 8
      for (int i = 0; i < S::takes; ++i)
        unit.handed[i].at[r] = load(t.handed + i * t.handed_slot + r * t.Hp + v * L);
#pragma GCC unroll 8
      for (int i = 0; i < C::unit_weights; ++i)
        unit.unit_weight[i].at[r] = load(t.unit_weights + i * t.Hp + v * L);
    }
    S::template forward<RowsMath<F, kRows>>(unit);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < C::states - 1; ++i)
        store(t.states + i * t.state_slot + r * t.state_row + v * L, unit.state[i].at[r]);
#pragma GCC unroll 8
      for (int i = 0; i < S::gives; ++i)
        store(t.handed + i * t.handed_slot + r * t.Hp + v * L, unit.handed[i].at[r]);
      store(t.result + r * t.result_row + v * L, unit.result.at[r]);
      if (t.y) store_n(t.y + r * t.y_row + v * L, unit.result.at[r], v == NV - 1 ? t.units : L);
      if (S::saved && t.save)
#pragma GCC unroll 8
        for (int g = 0; g < S::saved; ++g)
          store(t.save + r * t.save_row + g * t.save_slot + v * L, unit.save[g].at[r]);
    }
  }
}

template <class E, class F>
using RunGateTile = void (*)(bool project, int64_t rows, int64_t vectors, const GateTile<E, F>&);

// The tiles of one stage, for any number of rows (0: a single row) and vectors. Like `linear` they
// are compiled once: where half precision is multiplied as float32, it uses the tiles of float32.
template <class S, bool kProject, class E, class F>
void run_gate_tile(int64_t rows, int64_t vectors, const GateTile<E, F>& tile) {
  with_vectors(vectors, [&](auto v) {
    if constexpr (v <= kGateVectors<S>)
      with_rows<tile_rows(accumulators<S>(kProject) * v)>(
          rows, [&](auto r) { gate_tile<S, kProject, r, v, E, F>(tile); });
  });
}

template <class S, class E, class F>
void run_any_gate_tile(bool project, int64_t rows, int64_t vectors, const GateTile<E, F>& tile) {
  project ? run_gate_tile<S, true>(rows, vectors, tile)
          : run_gate_tile<S, false>(rows, vectors, tile);
}

// The tiles of a program's stages: program_tile.h.
template <class E, class F>
void run_program_tile(bool project, int64_t rows, int64_t vectors, const GateTile<E, F>& tile);

// The tiles of all stages of a cell.
template <class E, class F>
struct GateTiles {
  RunGateTile<E, F> stage[kMaxStages];

  static GateTiles of(const Shape& shape);
  // The tile of a program's block for some rows, of so many products and inputs. If the first
  // product stands apart from its input, and the last input from its product, `apart` says so.
  static RunBlock<E, F> block(int64_t rows, int products, int inputs, bool apart);
};

// Defined outside the class: an inline function would be compiled wherever it is used.
template <class E, class F>
GateTiles<E, F> GateTiles<E, F>::of(const Shape& shape) {
  if (shape.program) {
    GateTiles tiles{};
    for (int i = 0; i < shape.facts().stages; ++i) {
      RunGateTile<E, F> compiled = nullptr;
      if constexpr (std::is_same_v<E, F>)
        compiled = reinterpret_cast<RunGateTile<E, F>>(compiled_tile(*shape.program, sizeof(F), i));
      tiles.stage[i] = compiled ? compiled : run_program_tile<E, F>;
    }
    return tiles;
  }
  return with_cell(shape.cell, [](auto c) {
    GateTiles tiles{};
    for_each_stage<decltype(c)>([&](auto s) {
      using S = decltype(s);
      tiles.stage[S::index] = run_any_gate_tile<S, E, F>;
    });
    return tiles;
  });
}

extern template struct GateTiles<float, float>;
extern template struct GateTiles<double, double>;
#if defined(__AVX512BF16__)
extern template struct GateTiles<BFloat16, float>;
#endif

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
