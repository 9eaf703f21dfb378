// The weights of one direction as forward reads them. The panels are made by the call that uses
// them or ahead, by fusedrnn::make_panels.
//
//   w_ih   [group of units][k][input slot][nv][lanes]      b         [input slot][Hp]
//   w_hh   [group of units][k][product slot][nv][lanes]    hidden_b  [product apart][Hp]
//   w_hr   [group of outputs][k][nv][lanes]                w_unit    [unit weight][Hp]
//
// b is b_ih + b_hh, except where a product stands apart from the input: then b_hh is added to the
// product, as hidden_b (the GRU's candidate, where the reset gate scales it). A cell of several
// stages has all of this for each stage, one after the other. Where a tile has no room for all
// slots of a stage, they are cut into blocks (`Blocks`), and each group has a panel for each block.
// Panels made ahead have the groups of the default plan, so that they serve any number of threads.
#pragma once

#include "gate_tile.h"
#include "kernels.h"
#include "modifiers.h"
#include "walk.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

template <class S, class F>
void add_biases(const Shape& s, const StageFacts& stage, const Weights& w, F* bias,
                F* hidden_bias) {
  const int64_t Hp = s.Hp();
  fill(bias, stage.inputs * Hp);
  fill(hidden_bias, stage.apart * Hp);
  if (!w.b_ih) return;
  const auto row = [&](const void* b, int gate) { return static_cast<const S*>(b) + gate * s.H; };
  for (int slot = 0; slot < stage.inputs; ++slot)
    convert(bias + slot * Hp, row(w.b_ih, stage.gate_of_input[slot]), s.H);
  for (int slot = 0; slot < stage.products; ++slot) {
    const int input = stage.input_of_product[slot];
    F* const to = input < 0 ? hidden_bias + (slot - stage.first_apart) * Hp : bias + input * Hp;
    add_row<F>(row(w.b_hh, stage.gate_of_product[slot]), {0, s.H}, to);
  }
}

// Copies rows of values per unit, from [rows][H] to [rows][Hp].
template <class S, class F>
void pad_units(const Shape& s, const void* values, int64_t rows, F* to) {
  for (int64_t row = 0; row < rows; ++row, to += s.Hp()) {
    convert(to, static_cast<const S*>(values) + row * s.H, s.H);
    fill(to + s.H, s.Hp() - s.H);
  }
}

// The groups of units in one stage's panels, and the groups of projected values.
inline Groups unit_groups(const Shape& s, const StageFacts& stage, int64_t lanes,
                          const Plan& plan) {
  return make_groups(s.H, lanes, gate_vectors(stage, s.facts().stages), plan);
}
inline Groups output_groups(const Shape& s, int64_t lanes, const Plan& plan) {
  return make_groups(s.P, lanes, kGroup, plan);
}

// The panels of one stage.
template <class S, class F>
class StagePanels {
  using E = typename OperandOf<S>::type;
  static constexpr int64_t L = kLanes<F>;

 public:
  // The depth of a panel: K, rounded up to whole pairs.
  static int64_t depth(int64_t K) { return round_up(K, kTogether<E>); }

  E *w_ih = nullptr, *w_hh = nullptr, *w_hr = nullptr;
  F *bias = nullptr, *hidden_bias = nullptr, *w_unit = nullptr;

  void allocate(const Shape& s, const StageFacts& stage, const Plan& plan, Arena& arena) {
    if (!plan.in_place) {
      const int64_t units = unit_groups(s, stage, L, plan).vectors * L;
      w_ih = arena.take<E>(units * stage.inputs * depth(s.I));
      w_hh = arena.take<E>(units * stage.products * depth(s.R()));
      if (s.P) w_hr = arena.take<E>(output_groups(s, L, plan).vectors * L * depth(s.H));
    }
    bias = arena.take<F>(stage.inputs * s.Hp());
    hidden_bias = arena.take<F>(stage.apart * s.Hp());
    if (s.facts().unit_weights) w_unit = arena.take<F>(s.facts().unit_weights * s.Hp());
  }

  // Makes the share of one thread.
  void make(const Shape& s, const StageFacts& stage, const Plan& plan, const Weights& w,
            const Team& team) const {
    if (!plan.in_place) {
      const Groups units = unit_groups(s, stage, L, plan), outputs = output_groups(s, L, plan);
      const Range mine = share(units.count, team.rank, team.size);
      for (const Block& block : Blocks(stage)) {
        const Slots inputs{block.input, block.inputs, stage.inputs};
        const Slots products{block.product, block.products, stage.products};
        make_gate_panels(weight(w.w_ih), s.H, s.I, inputs, stage.gate_of_input, units, mine, w_ih);
        make_gate_panels(weight(w.w_hh), s.H, s.R(), products, stage.gate_of_product, units, mine,
                         w_hh);
      }
      if (s.P)
        make_gate_panels(weight(w.w_hr), s.P, s.H, {0, 1, 1}, kFirstGate, outputs,
                         share(outputs.count, team.rank, team.size), w_hr);
    }
    if (team.rank != 0) return;
    add_biases<S>(s, stage, w, bias, hidden_bias);
    if (w_unit) pad_units<S>(s, w.w_unit, s.facts().unit_weights, w_unit);
  }

 private:
  static const S* weight(const void* w) { return static_cast<const S*>(w); }
};

// The panels of all stages of a cell, for one direction.
template <class S, class F>
struct CellPanels {
  StagePanels<S, F> stage[kMaxStages];

  CellPanels() = default;
  CellPanels(const Shape& s, const Plan& plan, Arena& arena) {
    for (int i = 0; i < s.facts().stages; ++i)
      stage[i].allocate(s, s.facts().stage[i], plan, arena);
  }
  void make(const Shape& s, const Plan& plan, const Weights& w, const Team& team) const {
    for (int i = 0; i < s.facts().stages; ++i) stage[i].make(s, s.facts().stage[i], plan, w, team);
  }
};

// Makes the panels of all directions ahead.
template <Dtype dtype>
int64_t make_panels(const Problem& p, void* panels) {
  const Plan plan;
  Arena arena(panels);
  for (int d = 0; d < p.directions; ++d) {
    const CellPanels<StorageOf<dtype>, ComputeOf<dtype>> mine(p, plan, arena);
    if (panels) mine.make(p, plan, p.weights[d], Team());
  }
  return arena.bytes();
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
