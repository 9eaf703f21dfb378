// The weights of one direction as forward reads them, packed by the call that uses them or ahead,
// by fusedrnn::pack_weights.
//
//   w_ih   [group of units][k][input slot][nv][lanes]      b         [input slot][Hp]
//   w_hh   [group of units][k][product slot][nv][lanes]    hidden_b  [Hp]   GRU: starts n'
//   w_hr   [group of outputs][k][nv][lanes]                projected LSTM
//
// b is b_ih + b_hh, but for the GRU's candidate, whose b_hh the reset gate scales. A cell of two
// parts has all of this for one, then for the other. What is packed ahead is in the groups of the
// default plan, so that it serves any number of threads.
#pragma once

#include "gate_tile.h"
#include "kernels.h"
#include "walk.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

template <class S, class F, class C>
void add_biases(const Shape& s, const Weights& w, F* bias, F* hidden_bias) {
  const int64_t Hp = s.Hp();
  fill(bias, C::inputs * Hp);
  fill(hidden_bias, Hp);
  if (!w.b_ih) return;
  for (int g = 0; g < C::inputs; ++g) {
    const bool apart = C::has_late_input && g == C::inputs - 1;
    for (int64_t u = 0; u < s.H; ++u) {
      const F b_ih = to_compute(static_cast<const S*>(w.b_ih)[g * s.H + u]);
      const F b_hh = to_compute(static_cast<const S*>(w.b_hh)[g * s.H + u]);
      bias[g * Hp + u] = apart ? b_ih : b_ih + b_hh;
      if (apart) hidden_bias[u] = b_hh;
    }
  }
}

// The panels of one part of a cell; most cells have only one part.
template <class S, class F, class C>
class WeightPanels {
  using E = typename OperandOf<S>::type;
  static constexpr int64_t L = kLanes<F>;

 public:
  static Groups units_of(const Shape& s, const Plan& plan) {
    return make_groups(s.H, L, kGateVectors<C>, plan);
  }
  static Groups outputs_of(const Shape& s, const Plan& plan) {
    return make_groups(s.P, L, kGroup, plan);
  }
  // Values of k in a panel.
  static int64_t depth(int64_t K) { return round_up(K, kTogether<E>); }

  E *w_ih = nullptr, *w_hh = nullptr, *w_hr = nullptr;
  F *bias = nullptr, *hidden_bias = nullptr;

  WeightPanels() = default;
  WeightPanels(const Shape& s, const Plan& plan, Layout& layout) {
    if (!plan.in_place) {
      const int64_t units = units_of(s, plan).vectors * L;
      w_ih = layout.take<E>(units * C::inputs * depth(s.I));
      w_hh = layout.take<E>(units * C::products * depth(s.R()));
      if (s.P) w_hr = layout.take<E>(outputs_of(s, plan).vectors * L * depth(s.H));
    }
    bias = layout.take<F>(C::inputs * s.Hp());
    hidden_bias = layout.take<F>(s.Hp());
  }

  // The share of one thread.
  void pack(const Shape& s, const Plan& plan, const Weights& whole, const Team& team) const {
    const Weights w = own(s, whole);
    if (!plan.in_place) {
      const Groups units = units_of(s, plan), outputs = outputs_of(s, plan);
      const Range mine = share(units.count, team.rank, team.size);
      const auto same = [](int g) { return g; };
      pack_gate_panels(weight(w.w_ih), s.H, s.I, C::inputs, same, units, mine, w_ih);
      pack_gate_panels(weight(w.w_hh), s.H, s.R(), C::products, gate_of_product<C>, units, mine,
                       w_hh);
      if (s.P)
        pack_gate_panels(weight(w.w_hr), s.P, s.H, 1, same, outputs,
                         share(outputs.count, team.rank, team.size), w_hr);
    }
    if (team.rank == 0) add_biases<S, F, C>(s, w, bias, hidden_bias);
  }

 private:
  static const S* weight(const void* w) { return static_cast<const S*>(w); }
  // The whole cell's weights from the part's first gate on.
  static Weights own(const Shape& s, Weights w) {
    const auto skip = [&](const void*& values, int64_t columns) {
      if (values) values = weight(values) + C::first_gate * s.H * columns;
    };
    skip(w.w_ih, s.I), skip(w.w_hh, s.R());
    skip(w.b_ih, 1), skip(w.b_hh, 1);
    return w;
  }
};

// The panels of all parts of a cell, for one direction.
template <class S, class F, class C>
struct CellPanels {
  using First = WeightPanels<S, F, typename C::First>;
  using Last = WeightPanels<S, F, typename C::Last>;
  First first;
  Last last;  // of a cell that is one part, nothing

  CellPanels() = default;
  CellPanels(const Shape& s, const Plan& plan, Layout& layout) : first(s, plan, layout) {
    if constexpr (has_parts<C>) last = Last(s, plan, layout);
  }
  void pack(const Shape& s, const Plan& plan, const Weights& w, const Team& team) const {
    first.pack(s, plan, w, team);
    if constexpr (has_parts<C>) last.pack(s, plan, w, team);
  }
  template <class Part>
  const WeightPanels<S, F, Part>& of() const {
    if constexpr (std::is_same_v<Part, typename C::First>)
      return first;
    else
      return last;
  }
};

template <class S, class F, class C>
int64_t pack_of_cell(const Problem& p, void* panels) {
  const Plan plan;
  Layout layout(panels);
  for (int d = 0; d < p.directions; ++d) {
    const CellPanels<S, F, C> mine(p, plan, layout);
    if (panels) mine.pack(p, plan, p.weights[d], Team());
  }
  return layout.bytes();
}

// Packs all directions ahead.
template <Dtype dtype>
int64_t pack(const Problem& p, void* panels) {
  return with_cell(p.cell, [&](auto cell) {
    return pack_of_cell<StorageOf<dtype>, ComputeOf<dtype>, decltype(cell)>(p, panels);
  });
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
