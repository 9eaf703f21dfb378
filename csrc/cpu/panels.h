// The weights of one direction as forward reads them. The panels are made by the call that uses
// them or ahead, by fusedrnn::make_panels.
//
//   w_ih   [group of units][k][input slot][nv][lanes]      b         [input slot][Hp]
//   w_hh   [group of units][k][product slot][nv][lanes]    hidden_b  [Hp]
//   w_hr   [group of outputs][k][nv][lanes]                w_unit    [unit weight][Hp]
//
// b is b_ih + b_hh, except for a late input: its b_hh is added to the product instead, as hidden_b
// (the GRU's candidate, where the reset gate scales it). A cell of several stages has all of this
// for each stage, one after the other. Panels made ahead have the groups of the default plan, so
// that they serve any number of threads.
#pragma once

#include "gate_tile.h"
#include "kernels.h"
#include "walk.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

template <class S, class F, class Stage>
void add_biases(const Shape& s, const Weights& w, F* bias, F* hidden_bias) {
  const int64_t Hp = s.Hp();
  fill(bias, Stage::inputs * Hp);
  fill(hidden_bias, Hp);
  if (!w.b_ih) return;
  for (int g = 0; g < Stage::inputs; ++g) {
    const bool apart = Stage::has_late_input && g == Stage::inputs - 1;
    for (int64_t u = 0; u < s.H; ++u) {
      const F b_ih = to_compute(static_cast<const S*>(w.b_ih)[g * s.H + u]);
      const F b_hh = to_compute(static_cast<const S*>(w.b_hh)[g * s.H + u]);
      bias[g * Hp + u] = apart ? b_ih : b_ih + b_hh;
      if (apart) hidden_bias[u] = b_hh;
    }
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
template <class Stage>
Groups unit_groups(const Shape& s, int64_t lanes, const Plan& plan) {
  return make_groups(s.H, lanes, kGateVectors<Stage>, plan);
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

  template <class Stage>
  void allocate(const Shape& s, const Plan& plan, Arena& arena) {
    if (!plan.in_place) {
      const int64_t units = unit_groups<Stage>(s, L, plan).vectors * L;
      w_ih = arena.take<E>(units * Stage::inputs * depth(s.I));
      w_hh = arena.take<E>(units * Stage::products * depth(s.R()));
      if (s.P) w_hr = arena.take<E>(output_groups(s, L, plan).vectors * L * depth(s.H));
    }
    bias = arena.take<F>(Stage::inputs * s.Hp());
    hidden_bias = arena.take<F>(s.Hp());
    if (Stage::Whole::unit_weights) w_unit = arena.take<F>(Stage::Whole::unit_weights * s.Hp());
  }

  // Makes the share of one thread.
  template <class Stage>
  void make(const Shape& s, const Plan& plan, const Weights& whole, const Team& team) const {
    const Weights w = own<Stage>(s, whole);
    if (!plan.in_place) {
      const Groups units = unit_groups<Stage>(s, L, plan), outputs = output_groups(s, L, plan);
      const Range mine = share(units.count, team.rank, team.size);
      const auto same = [](int g) { return g; };
      make_gate_panels(weight(w.w_ih), s.H, s.I, Stage::inputs, same, units, mine, w_ih);
      make_gate_panels(weight(w.w_hh), s.H, s.R(), Stage::products, gate_of_product<Stage>, units,
                       mine, w_hh);
      if (s.P)
        make_gate_panels(weight(w.w_hr), s.P, s.H, 1, same, outputs,
                         share(outputs.count, team.rank, team.size), w_hr);
    }
    if (team.rank != 0) return;
    add_biases<S, F, Stage>(s, w, bias, hidden_bias);
    if (w_unit) pad_units<S>(s, w.w_unit, Stage::Whole::unit_weights, w_unit);
  }

 private:
  static const S* weight(const void* w) { return static_cast<const S*>(w); }
  // The whole cell's weights from the stage's first gate on.
  template <class Stage>
  static Weights own(const Shape& s, Weights w) {
    const auto skip = [&](const void*& values, int64_t columns) {
      if (values) values = weight(values) + Stage::first_gate * s.H * columns;
    };
    skip(w.w_ih, s.I), skip(w.w_hh, s.R());
    skip(w.b_ih, 1), skip(w.b_hh, 1);
    return w;
  }
};

// The panels of all stages of a cell, for one direction.
template <class S, class F, class C>
struct CellPanels {
  StagePanels<S, F> stage[stages_of<C>];

  CellPanels() = default;
  CellPanels(const Shape& s, const Plan& plan, Arena& arena) {
    for_each_stage<C>([&](auto own) {
      using Stage = decltype(own);
      stage[Stage::index].template allocate<Stage>(s, plan, arena);
    });
  }
  void make(const Shape& s, const Plan& plan, const Weights& w, const Team& team) const {
    for_each_stage<C>([&](auto own) {
      using Stage = decltype(own);
      stage[Stage::index].template make<Stage>(s, plan, w, team);
    });
  }
};

template <class S, class F, class C>
int64_t panels_of_cell(const Problem& p, void* panels) {
  const Plan plan;
  Arena arena(panels);
  for (int d = 0; d < p.directions; ++d) {
    const CellPanels<S, F, C> mine(p, plan, arena);
    if (panels) mine.make(p, plan, p.weights[d], Team());
  }
  return arena.bytes();
}

// Makes the panels of all directions ahead.
template <Dtype dtype>
int64_t make_panels(const Problem& p, void* panels) {
  return with_cell(p.cell, [&](auto cell) {
    return panels_of_cell<StorageOf<dtype>, ComputeOf<dtype>, decltype(cell)>(p, panels);
  });
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
