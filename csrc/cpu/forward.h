// Forward of one layer: each direction is a walk over the steps by a team of threads.
//
//   prepare   pack the weights into panels, unless they come so; the initial state     (shared out)
//   chunk     gates of the chunk's rows = bias + x W_ih^T, as one product        (own rows, units)
//     step    acc = gates + h W_hh^T, and from the registers straight through the cell
//
// A cell of two parts (cell.h) has two such steps, its second on what the first left for all units.
//
// A thread computes just the gates that it will itself consume, so that the chunk needs no barrier.
// h is kept in two padded buffers, read and written in turn; c is updated in place. Groups of units
// are taken forwards and backwards in turn, so that the weights last read, still in cache, come
// first in the next step.
//
//   gates     [chunk rows][input slot][Hp]     chunk row (s - s0) * B + b
//   h         [2][B][Rp]     c, hidden  [B][Hp]     hidden: h before its projection, or the second
//                                                 part's operand
#pragma once

#include "gate_tile.h"
#include "in_place.h"
#include "kernels.h"
#include "panels.h"
#include "walk.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

template <class S, class F, class C>
class ForwardWalk {
  using E = typename OperandOf<S>::type;
  static constexpr bool kConvert = !std::is_same_v<S, F>;  // storage is not what is computed
  static constexpr bool kConvertOperands = !std::is_same_v<S, E>;  // nor what is multiplied
  static constexpr int64_t L = kLanes<F>;
  static constexpr int64_t kMaxRows = 8;
  using First = typename C::First;  // parts; for most cells the same, the cell itself
  using Last = typename C::Last;
  template <class Part>
  using PanelsOf = WeightPanels<S, F, Part>;

 public:
  ForwardWalk(const Problem& p, const Plan& plan, Layout& layout)
      : p_(p),
        plan_(plan),
        Hp_(p.Hp()),
        Rp_(round_up(p.R(), kHiddenPadding)),
        first_groups_(PanelsOf<First>::units_of(p, p.prepacked ? Plan() : plan)),
        groups_(PanelsOf<Last>::units_of(p, p.prepacked ? Plan() : plan)),
        outputs_(PanelsOf<Last>::outputs_of(p, p.prepacked ? Plan() : plan)) {
    const int64_t chunk_rows = plan.forward_steps * p.B;
    if (p.prepacked) {
      // Layout takes memory to write to; in these panels nothing is written.
      Layout given(const_cast<void*>(p.panels));
      for (int d = 0; d < p.directions; ++d) panels_[d] = CellPanels<S, F, C>(p, Plan(), given);
    } else {
      panels_[0] = CellPanels<S, F, C>(p, plan, layout);
      for (int d = 1; d < p.directions; ++d) panels_[d] = panels_[0];
    }
    for (E*& h : h_) h = layout.take<E>(p.B * Rp_);
    if (C::has_c || has_parts<C>) c_ = layout.take<F>(p.B * Hp_);
    if (p.P || has_parts<C>) hidden_ = layout.take<E>(p.B * Hp_);
    if (!plan.fuse_input) gates_ = layout.take<F>(chunk_rows * C::inputs * Hp_);
    if (kConvertOperands) x_ = layout.take<E>(chunk_rows * p.I);
    if (plan.in_place) hidden_gates_ = layout.take<F>(p.B * Hp_);
    x_rows_ = layout.take<const E*>(chunk_rows);
    out_rows_ = layout.take<F*>(chunk_rows);
  }

  void run(int d, const Team& team) {
    const Steps steps{p_, d == 1};
    const Range rows = row_share(p_, plan_, team), groups = group_share(groups_, plan_, team);
    const Range first_groups = has_parts<C> ? group_share(first_groups_, plan_, team) : groups;
    prepare(d, team);
    team.sync();
    for (int64_t s0 = 0; s0 < p_.T; s0 += plan_.forward_steps) {
      const int64_t s1 = least(s0 + plan_.forward_steps, p_.T);
      project_input(d, steps, s0, s1, rows, first_groups, groups, team);
      for (int64_t s = s0; s < s1; ++s) {
        const Range alive{rows.begin, most(rows.begin, least(rows.end, steps.alive(s)))};
        step<First>(d, steps, s, (s - s0) * p_.B, alive, first_groups);
        if constexpr (has_parts<C>) {
          if (plan_.split == Split::units) team.sync();
          step<Last>(d, steps, s, (s - s0) * p_.B, alive, groups);
        }
        if (p_.P) {
          if (plan_.split == Split::units) team.sync();
          project_output(d, steps, s, alive, team);
        }
        finish(d, steps, s, alive, groups, team);
        if (plan_.split == Split::units) team.sync();
      }
    }
  }

 private:
  static int64_t depth(int64_t K) { return PanelsOf<Last>::depth(K); }
  template <class Part>
  const PanelsOf<Part>& panels(int d) const {
    return panels_[d].template of<Part>();
  }
  template <class Part>
  const Groups& groups_of() const {
    return std::is_same_v<Part, Last> ? groups_ : first_groups_;
  }
  const S* weight(const void* w) const { return static_cast<const S*>(w); }
  S* output(int d, const Steps& steps, int64_t s, int64_t b) const {
    return static_cast<S*>(p_.output) + steps.row(s, b) * p_.directions * p_.R() + d * p_.R();
  }
  S* reserve(int d, const Steps& steps, int64_t s, int64_t b) const {
    return static_cast<S*>(p_.reserve) + (d * p_.rows + steps.row(s, b)) * C::saved * Hp_;
  }

  void prepare(int d, const Team& team) {
    if (!p_.prepacked) panels_[d].pack(p_, plan_, p_.weights[d], team);
    const Range rows = share(p_.B, team.rank, team.size);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      for (E* h : h_) initial_row(p_.hx, d, b, p_.R(), Rp_, h);
      if (C::has_c) initial_row(p_.cx, d, b, p_.H, Hp_, c_);
      if (p_.P || has_parts<C>) fill(hidden_ + b * Hp_, Hp_);
    }
  }

  template <class T>
  void initial_row(const void* state, int d, int64_t b, int64_t n, int64_t padded, T* to) {
    T* const row = to + b * padded;
    if (state) convert(row, weight(state) + (d * p_.B + b) * n, n);
    fill(row + (state ? n : 0), padded - (state ? n : 0));
  }

  void project_input(int d, const Steps& steps, int64_t s0, int64_t s1, Range rows,
                     Range first_groups, Range groups, const Team& team) {
    if (kConvertOperands) {
      // Converted once by the team, where all of it is every thread's operand.
      const bool shared = plan_.split == Split::units;
      for (int64_t s = s0; s < s1; ++s) {
        const int64_t n = steps.alive(s);
        const Range mine =
            shared ? share(n, team.rank, team.size) : Range{rows.begin, least(rows.end, n)};
        for (int64_t b = mine.begin; b < mine.end; ++b)
          convert(x_ + ((s - s0) * p_.B + b) * p_.I, input_row(steps, s, b), p_.I);
      }
      if (shared) team.sync();
    }
    if (plan_.fuse_input) return;
    // The thread's own rows of the chunk, one after the other, whatever their strides. The list is
    // the thread's own part of the arrays (units split: everybody writes the same; so one does).
    // Its part begins at the same place in a shorter chunk: another thread may be a chunk behind.
    const int64_t first = plan_.split == Split::batch ? rows.begin * plan_.forward_steps : 0;
    const E** const from = x_rows_ + first;
    F** const to = out_rows_ + first;
    int64_t count = 0;
    if (plan_.split != Split::units || team.rank == 0) {
      count = list_rows(steps, s0, s1, rows, from, to);
    } else {
      for (int64_t s = s0; s < s1; ++s) count += steps.alive(s);
    }
    if (plan_.split == Split::units) team.sync();
    project_rows<First>(d, from, to, count, first_groups);
    if constexpr (has_parts<C>) project_rows<Last>(d, from, to, count, groups);
  }

  template <class Part>
  void project_rows(int d, const E* const* from, F* const* to, int64_t count, Range groups) {
    if (plan_.in_place) return project_in_place<Part>(d, from, to, count, groups);
    constexpr int most_rows = tile_rows(Part::inputs * kGateVectors<Part>);
    const Groups& all = groups_of<Part>();
    for (int64_t group = groups.begin; group < groups.end; ++group) {
      const int64_t unit = all.begin(group) * L, nv = all.size(group);
      LinearTile<E, F> tile;
      tile.segments = {1, p_.I, 0};
      tile.w = panels<Part>(d).w_ih + unit * Part::inputs * depth(p_.I);
      tile.bias = panels<Part>(d).bias + unit;
      tile.column_stride = tile.bias_stride = Part::inputs == 1 ? L : Hp_;
      tile.columns = L;
      const Tiles tiles(count, most_rows);
      for (int64_t i = 0, r = 0; i < tiles.count; r += tiles.size(i++)) {
        for (int64_t j = 0; j < tiles.size(i); ++j) {
          tile.rows[j] = from[r + j];
          tile.out[j] = to[r + j] + Part::first_gate * Hp_ + unit;
        }
        linear(p_.rows == 1 ? 0 : tiles.size(i), Part::inputs * nv, tile);
      }
    }
  }

  const S* input_row(const Steps& steps, int64_t s, int64_t b) const {
    return static_cast<const S*>(p_.input) + p_.input_offset(steps.t(s), b);
  }

  // The same in compute type; chunk_row is that of the step's first row.
  const E* x_row(const Steps& steps, int64_t s, int64_t chunk_row, int64_t b) const {
    if constexpr (kConvertOperands)
      return x_ + (chunk_row + b) * p_.I;
    else
      return input_row(steps, s, b);
  }

  int64_t list_rows(const Steps& steps, int64_t s0, int64_t s1, Range rows, const E** from,
                    F** to) const {
    int64_t count = 0;
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t end = least(rows.end, steps.alive(s));
      for (int64_t b = rows.begin; b < end; ++b, ++count) {
        from[count] = x_row(steps, s, (s - s0) * p_.B, b);
        to[count] = gates_ + ((s - s0) * p_.B + b) * C::inputs * Hp_;
      }
    }
    return count;
  }

  // The units that a range of groups holds.
  template <class Part>
  Range units_of(Range groups) const {
    const Groups& all = groups_of<Part>();
    return {all.begin(groups.begin) * L, least(all.begin(groups.end) * L, p_.H)};
  }

  template <class Part>
  void project_in_place(int d, const E* const* from, F* const* to, int64_t count, Range groups) {
    const Range units = units_of<Part>(groups);
    for (int64_t r = 0; r < count; ++r)
      for (int g = 0; g < Part::inputs; ++g) {
        const int64_t gate = Part::first_gate + g;
        F* const out = to[r] + gate * Hp_ + units.begin;
        convert(out, panels<Part>(d).bias + g * Hp_ + units.begin, units.size());
        fill(out + units.size(), round_up(units.size(), L) - units.size());
        add_dots(weight(p_.weights[d].w_ih) + (gate * p_.H + units.begin) * p_.I, p_.I,
                 units.size(), from[r], p_.I, out);
      }
  }

  // The recurrent product into the gates (and hidden_gates for what the cell wants apart), weights
  // in place.
  template <class Part>
  void multiply_in_place(int d, const E* operand, F* gates, F* apart, Range groups) {
    const Range units = units_of<Part>(groups);
    for (int slot = 0; slot < Part::products; ++slot) {
      const int input = Part::input_of_product(slot);
      const int64_t gate = Part::first_gate + Part::gate_of_product(slot);
      F* const out = (input < 0 ? apart : gates + input * Hp_) + units.begin;
      if (input < 0)
        convert(out, panels<Part>(d).hidden_bias + units.begin, round_up(units.size(), L));
      add_dots(weight(p_.weights[d].w_hh) + (gate * p_.H + units.begin) * p_.R(), p_.R(),
               units.size(), operand, p_.R(), out);
    }
  }

  // One part of a step, which for most cells is all of it. In line, as `finish` is: a step of a few
  // rows takes less than a microsecond, and most of what these begin with is the same at each.
  template <class Part>
  FUSEDRNN_INLINE void step(int d, const Steps& steps, int64_t s, int64_t chunk_row, Range rows,
                            Range groups) {
    constexpr int kVectors = kGateVectors<Part>;
    constexpr bool kGivesOperand = has_parts<C> && std::is_same_v<Part, First>;
    constexpr bool kTakesOperand = has_parts<C> && std::is_same_v<Part, Last>;
    const Groups& all = groups_of<Part>();
    const PanelsOf<Part>& panel = panels<Part>(d);
    const auto run_tile = std::is_same_v<Part, First> ? tiles_.first : tiles_.last;
    const E* const h_read = h_[s % 2];
    E* const h_write = p_.P || kGivesOperand ? hidden_ : h_[(s + 1) % 2];
    const int64_t write_row = p_.P || kGivesOperand ? Hp_ : Rp_;
    const E* const operand = kTakesOperand ? hidden_ : h_read;
    const int64_t operand_row = kTakesOperand ? Hp_ : Rp_;
    F* const gates = gates_ + chunk_row * C::inputs * Hp_ + Part::first_gate * Hp_;
    if (plan_.in_place)
      for (int64_t b = rows.begin; b < rows.end; ++b)
        multiply_in_place<Part>(d, operand + b * operand_row, gates + b * C::inputs * Hp_,
                                hidden_gates_ + b * Hp_, groups);

    F converted[kMaxRows * (Part::saved ? Part::saved : 1) * kVectors * L];
    const bool project = plan_.fuse_input;
    GateTile<E, F> tile;
    tile.K = plan_.in_place ? 0 : p_.R();
    tile.I = p_.I;
    tile.hidden_bias_row = plan_.in_place ? Hp_ : 0;
    tile.gates_row = project ? 0 : C::inputs * Hp_;
    tile.gates_slot = Hp_, tile.h_prev_row = Rp_;
    tile.c_row = Hp_, tile.h_row = write_row, tile.y_row = p_.directions * p_.R();
    const Tiles tiles(rows.size(), tile_rows(accumulators<Part>(project) * kVectors));
    const int64_t unit_weights = Part::products * depth(p_.R());
    // All parts' weights pass through the cache in a step.
    const int64_t step_weights = C::products * depth(p_.R());
    const bool far = groups.size() * kVectors * L * step_weights * sizeof(E) > Ahead::kNear;
    const bool last_first = (s % 2 != 0) != p_.backwards;
    for (int64_t i = 0; i < groups.size(); ++i) {
      const int64_t group = last_first ? groups.end - 1 - i : groups.begin + i;
      const int64_t unit = all.begin(group) * L, nv = all.size(group);
      tile.w = panel.w_hh + unit * unit_weights;
      Ahead ahead;
      if (far && i + 1 < groups.size() && !plan_.in_place) {
        const int64_t next = last_first ? group - 1 : group + 1;
        ahead.set(panel.w_hh + all.begin(next) * L * unit_weights,
                  all.size(next) * L * unit_weights, p_.R());
      }
      tile.units = least(p_.H - unit - (nv - 1) * L, L);
      if (project) {
        tile.w_ih = panel.w_ih + unit * Part::inputs * depth(p_.I);
        tile.gates = panel.bias + unit;
      }
      tile.save_row = kConvert ? Part::saved * nv * L : C::saved * Hp_;
      tile.save_slot = kConvert ? nv * L : Hp_;
      for (int64_t j = 0, b = rows.begin; j < tiles.count; b += tiles.size(j++)) {
        const int64_t R = tiles.size(j);
        for (int64_t r = 0; r < R; ++r) tile.rows[r] = operand + (b + r) * operand_row;
        tile.ahead = ahead.of_tile(j);
        if (project)
          for (int64_t r = 0; r < R; ++r) tile.inputs[r] = x_row(steps, s, chunk_row, b + r);
        else
          tile.gates = gates + b * C::inputs * Hp_ + unit;
        tile.hidden_bias =
            (tile.hidden_bias_row ? hidden_gates_ + b * Hp_ : panel.hidden_bias) + unit;
        tile.h_prev = h_read + b * Rp_ + unit;
        tile.c = c_ + b * Hp_ + unit;
        tile.h = h_write + b * write_row + unit;
        tile.y = nullptr, tile.save = nullptr;
        if constexpr (!kConvertOperands && !kGivesOperand)
          if (!p_.P) tile.y = output(d, steps, s, b) + unit;
        if constexpr (!kConvert) {
          if (p_.reserve) tile.save = reserve(d, steps, s, b) + Part::first_slot * Hp_ + unit;
        } else {
          if (p_.reserve) tile.save = converted;
        }
        run_tile(plan_.fuse_input, p_.B == 1 ? 0 : R, nv, tile);
        if (std::is_same_v<Part, Last> && group + 1 == all.count) clear_padding(d, steps, s, b, R);
        if (kConvert) convert_tile<Part>(d, steps, s, b, R, unit, nv, tile);
      }
    }
  }

  // The reserve is a tensor: every call gives it the same values, those beyond the last vector too.
  void clear_padding(int d, const Steps& steps, int64_t s, int64_t b, int64_t R) {
    const int64_t first = groups_.vectors * L;
    if (!p_.reserve || first == Hp_) return;
    for (int64_t r = 0; r < R; ++r)
      for (int g = 0; g < C::saved; ++g)
        fill(reserve(d, steps, s, b + r) + g * Hp_ + first, Hp_ - first);
  }

  // Half precision: outputs and reserve of a tile, from compute to storage type. h is rounded too:
  // a sequence cut in two calls gives the numbers of one call. What one part leaves for the other
  // is no h, and is not.
  template <class Part>
  void convert_tile(int d, const Steps& steps, int64_t s, int64_t b, int64_t R, int64_t unit,
                    int64_t nv, const GateTile<E, F>& tile) {
    const int64_t units = (nv - 1) * L + tile.units;
    for (int64_t r = 0; r < R; ++r) {
      if (kConvertOperands && !p_.P && std::is_same_v<Part, Last>) {
        S* const y = output(d, steps, s, b + r) + unit;
        convert_inline(y, tile.h + r * tile.h_row, units);
        convert_inline(tile.h + r * tile.h_row, y, units);
      }
      if (p_.reserve)
        for (int g = 0; g < Part::saved; ++g)
          convert_inline(reserve(d, steps, s, b + r) + (Part::first_slot + g) * Hp_ + unit,
                         tile.save + r * tile.save_row + g * tile.save_slot, nv * L);
    }
  }

  // Projected: h = W_hr (o tanh(c)).
  void project_output(int d, const Steps& steps, int64_t s, Range rows, const Team& team) {
    const Range groups = group_share(outputs_, plan_, team);
    E* const h_write = h_[(s + 1) % 2];
    F out[kMaxRows][kGroup * L];
    LinearTile<E, F> tile;
    tile.segments = {1, p_.H, 0};
    tile.column_stride = L;
    tile.columns = L;
    for (int64_t group = groups.begin; group < groups.end; ++group) {
      const int64_t column = outputs_.begin(group) * L, nv = outputs_.size(group);
      const int64_t valid = least(nv * L, p_.P - column);
      tile.w = panels<Last>(d).w_hr + column * depth(p_.H);
      const Tiles tiles(rows.size(), tile_rows(static_cast<int>(nv)));
      for (int64_t i = 0, b = rows.begin; i < tiles.count; b += tiles.size(i++)) {
        for (int64_t r = 0; r < tiles.size(i); ++r)
          tile.rows[r] = hidden_ + (b + r) * Hp_, tile.out[r] = out[r];
        linear(p_.B == 1 ? 0 : tiles.size(i), nv, tile);
        for (int64_t r = 0; r < tiles.size(i); ++r) {
          S* const y = output(d, steps, s, b + r) + column;
          convert(y, out[r], valid);
          convert(h_write + (b + r) * Rp_ + column, y, valid);
        }
      }
    }
  }

  // Rows whose last step this was: their state is final.
  FUSEDRNN_INLINE void finish(int d, const Steps& steps, int64_t s, Range rows, Range groups,
                              const Team& team) {
    const Range units = units_of<Last>(groups);
    for (int64_t b = most(rows.begin, steps.alive_after(s)); b < rows.end; ++b) {
      const E* const h = h_[(s + 1) % 2] + b * Rp_;
      if (p_.P) {
        const Range mine = group_share(outputs_, plan_, team);
        const int64_t first = outputs_.begin(mine.begin) * L;
        const int64_t last = least(outputs_.begin(mine.end) * L, p_.P);
        if (last > first)
          convert(static_cast<S*>(p_.hn) + (d * p_.B + b) * p_.P + first, h + first, last - first);
      } else {
        convert(static_cast<S*>(p_.hn) + (d * p_.B + b) * p_.H + units.begin, h + units.begin,
                units.size());
      }
      if (C::has_c)
        convert(static_cast<S*>(p_.cn) + (d * p_.B + b) * p_.H + units.begin,
                c_ + b * Hp_ + units.begin, units.size());
    }
  }

  const Problem& p_;
  const Plan& plan_;
  const int64_t Hp_, Rp_;
  const Groups first_groups_, groups_, outputs_;  // of units, by part; of projected values
  const GateTiles<E, F> tiles_ = GateTiles<E, F>::of(C::cell);
  CellPanels<S, F, C> panels_[kMaxDirections];
  E *h_[2], *hidden_ = nullptr;
  E* x_ = nullptr;
  F *c_ = nullptr, *gates_ = nullptr, *hidden_gates_ = nullptr;
  const E** x_rows_;
  F** out_rows_;
};

template <class S, class F, class C>
int64_t forward_of_cell(const Problem& p, const Plan& plan, ParallelFor parallel_for,
                        void* scratch) {
  using Walk = ForwardWalk<S, F, C>;
  Layout layout(scratch);
  Walk first(p, plan, layout);
  Walk second = plan.direction_teams > 1 ? Walk(p, plan, layout) : first;
  if (scratch)
    run_directions(p, plan, parallel_for,
                   [&](int d, const Team& team) { (d == 0 ? first : second).run(d, team); });
  return layout.bytes();
}

template <Dtype dtype>
int64_t forward(const Problem& p, const Plan& plan, ParallelFor parallel_for, void* scratch) {
  return with_cell(p.cell, [&](auto cell) {
    return forward_of_cell<StorageOf<dtype>, ComputeOf<dtype>, decltype(cell)>(
        p, plan, parallel_for, scratch);
  });
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
