// Backward of one layer: the walk of forward in reverse, with dgates and dh.
//
//   prepare   pack the weights as the transposed products need them                    (shared out)
//   chunk     gather h_prev (and, in half precision, everything else) for the chunk's rows
//     step    dh = dy + dgates_next W_hh, and from the registers through the cell to dgates
//   then      dx = dgates W_ih;   dW += dgates^T [x | h_prev];   db += sum of dgates
//
// A cell of two parts (cell.h) has two such steps: the last part's, whose product takes the first
// part's dgates of the step after; then the first part's, whose product takes the last part's of
// this step.
//
// Chunks keep dgates small and in cache; weight gradients are summed within a chunk and the chunks'
// sums added, which also rounds less than one long sum.
//
//   dgates    [steps + 1][B][grad slot][Hp]   slot `steps` holds the step after the chunk
//   h_prev    [steps + 1][B][Rp]              entry j + 1 is also h of step j
#pragma once

#include "grad_tile.h"
#include "in_place.h"
#include "kernels.h"
#include "outer.h"
#include "walk.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

template <class S, class F, class C>
class BackwardWalk {
  using E = typename OperandOf<S>::type;
  static constexpr bool kConvert = !std::is_same_v<S, F>;  // storage is not what is computed
  static constexpr bool kConvertOperands = !std::is_same_v<S, E>;  // nor what is multiplied
  static constexpr int64_t kPair = kTogether<E>;
  static constexpr int64_t L = kLanes<F>;
  static constexpr int64_t kMaxRows = 8;
  using First = typename C::First;  // parts; for most cells the same, the cell itself
  using Last = typename C::Last;
  static constexpr bool kDivided = has_parts<C>;

 public:
  BackwardWalk(const BackwardProblem& p, const Plan& plan, S* grad_input_reverse, Layout& layout)
      : p_(p),
        plan_(plan),
        grad_input_reverse_(grad_input_reverse),
        Hp_(p.Hp()),
        Rp_(round_up(p.R(), kHiddenPadding)),
        grad_row_(C::grads * Hp_),
        units_(make_groups(p.H, L, kGroup, plan)),
        state_(make_groups(p.R(), L, kGroup, plan)),
        inputs_{div_up(p.I, L), div_up(div_up(p.I, L), kGroup)},
        blocks_(div_up(p.H, kBlock)),
        projected_blocks_(div_up(p.P, kBlock)) {
    const int64_t steps = plan.backward_steps, rows = steps * p.B, K = depth(rows);
    const int64_t GH = gates_of(p.cell) * p.H;
    in_place_ = plan.in_place && p.T == 1 && !kDivided;
    recurrent_ = p.T > 1 || p.grad_hx;
    if (recurrent_ && !in_place_)
      w_hh_ = layout.take<E>(state_.vectors * L * First::products * depth(p.H));
    if (kDivided) last_w_hh_ = layout.take<E>(state_.vectors * L * Last::products * depth(p.H));
    if (p.grad_input && !in_place_)
      w_ih_ = layout.take<E>(inputs_.vectors * L * C::inputs * depth(p.H));
    dgates_ = layout.take<E>((steps + 1) * p.B * grad_row_);
    h_prev_ = layout.take<E>((steps + 1) * p.B * Rp_);
    carry_ = layout.take<F>(p.B * Rp_);
    if (C::has_c) dc_ = layout.take<F>(p.B * Hp_);
    if (kConvertOperands) x_ = layout.take<E>(rows * p.I);
    if (kConvert) {
      dy_ = layout.take<F>(rows * p.R());
      saved_ = layout.take<F>(rows * C::saved * Hp_);
    }
    if (p.P) {
      w_hr_ = layout.take<E>(units_.vectors * L * depth(p.P));
      dr_ = layout.take<E>(rows * Rp_);
    }
    for (int d = 0; d < p.directions; ++d) {
      const WeightGradients& g = p.grad_weights[d];
      wants_w_ih_ |= g.w_ih != nullptr, wants_w_hh_ |= g.w_hh != nullptr;
      wants_w_hr_ |= g.w_hr != nullptr, wants_bias_ |= g.b_ih || g.b_hh;
    }
    if (wants_w_ih_ || wants_w_hh_ || wants_bias_)
      a_ = layout.take<E>(C::grads * blocks_ * kBlock * K);
    if (wants_w_ih_) x_panels_.lay_out(layout, p.I, K);
    if (wants_w_hh_) h_panels_.lay_out(layout, p.R(), K);
    if (wants_w_hr_) a_projected_ = layout.take<E>(projected_blocks_ * kBlock * K);
    wants_hidden_ = wants_w_hr_ || (kDivided && wants_w_hh_);
    if (p.P || wants_hidden_) hidden_ = layout.take<E>(rows * Hp_);
    if (wants_hidden_) hidden_panels_.lay_out(layout, p.H, K);
    if (kConvert) {
      if (wants_w_ih_) total_.w_ih = layout.take<F>(GH * p.I);
      if (wants_w_hh_) total_.w_hh = layout.take<F>(GH * p.R());
      if (wants_w_hr_) total_.w_hr = layout.take<F>(p.P * p.H);
      if (wants_bias_) total_.b_ih = layout.take<F>(GH), total_.b_hh = layout.take<F>(GH);
    }
  }

  void run(int d, const Team& team) {
    const Steps steps{p_, d == 1};
    const Range rows = row_share(p_, plan_, team), groups = group_share(units_, plan_, team);
    prepare(d, team);
    for (int64_t s1 = p_.T; s1 > 0; s1 -= plan_.backward_steps) {
      const int64_t s0 = most<int64_t>(s1 - plan_.backward_steps, 0);
      gather(d, steps, s0, s1, team);
      team.sync();
      for (int64_t s = s1 - 1; s >= s0; --s) step(d, steps, s, s0, rows, groups, team);
      team.sync();
      const int64_t K = pack_columns(steps, s0, s1, team);
      if (p_.grad_input) input_gradient(d, steps, s0, s1, team);
      team.sync();
      weight_gradients(d, steps, s0, s1, K, s1 == p_.T, team);
      if (s0 > 0) hand_over(least(s0, plan_.backward_steps), team);
    }
    if (kConvert) store_totals(d, team);
  }

 private:
  static int64_t depth(int64_t K) { return round_up(K, kPair); }  // values of k in a panel
  static const S* at(const void* p, int64_t offset) { return static_cast<const S*>(p) + offset; }
  static S* at(void* p, int64_t offset) { return static_cast<S*>(p) + offset; }
  E* dgates(int64_t j, int64_t b) const { return dgates_ + (j * p_.B + b) * grad_row_; }
  E* h_prev(int64_t j, int64_t b) const { return h_prev_ + (j * p_.B + b) * Rp_; }
  int64_t output_offset(int d, const Steps& steps, int64_t s, int64_t b) const {
    return (steps.row(s, b) * p_.directions + d) * p_.R();
  }
  int64_t reserve_offset(int d, const Steps& steps, int64_t s, int64_t b) const {
    return (d * p_.rows + steps.row(s, b)) * C::saved * Hp_;
  }
  template <class T>
  void load_row(const void* from, int64_t offset, int64_t n, int64_t padded, T* to) const {
    if (from) convert(to, at(from, offset), n);
    for (int64_t i = from ? n : 0; i < padded; ++i) to[i] = T{};
  }

  void prepare(int d, const Team& team) {
    const Weights& w = p_.weights[d];
    const auto mine = [&](const Groups& groups) {
      return share(groups.count, team.rank, team.size);
    };
    if (recurrent_ && !in_place_)
      pack_column_panels(at(w.w_hh, 0), p_.H, p_.R(), First::products, gate_of_product<First>,
                         state_, mine(state_), w_hh_);
    if constexpr (kDivided)
      pack_column_panels(at(w.w_hh, Last::first_gate * p_.H * p_.R()), p_.H, p_.R(), Last::products,
                         gate_of_product<Last>, state_, mine(state_), last_w_hh_);
    if (p_.grad_input && !in_place_)
      pack_column_panels(
          at(w.w_ih, 0), p_.H, p_.I, C::inputs, [](int g) { return g; }, inputs_, mine(inputs_),
          w_ih_);
    if (p_.P)
      pack_column_panels(
          at(w.w_hr, 0), p_.P, p_.H, 1, [](int g) { return g; }, units_, mine(units_), w_hr_);
    const Range rows = share(p_.B, team.rank, team.size);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      load_row(p_.grad_hn, (d * p_.B + b) * p_.R(), p_.R(), Rp_, carry_ + b * Rp_);
      if (C::has_c) load_row(p_.grad_cn, (d * p_.B + b) * p_.H, p_.H, Hp_, dc_ + b * Hp_);
    }
  }

  // State before each step of the chunk (and after the last): h of the step before, or hx.
  void gather(int d, const Steps& steps, int64_t s0, int64_t s1, const Team& team) {
    const Range rows = share(p_.B, team.rank, team.size);
    for (int64_t s = s0; s <= s1; ++s) {
      const int64_t before = s > 0 ? steps.alive(s - 1) : 0;
      for (int64_t b = rows.begin; b < rows.end; ++b) {
        E* const to = h_prev(s - s0, b);
        if (b < before)
          load_row(p_.output, output_offset(d, steps, s - 1, b), p_.R(), Rp_, to);
        else
          load_row(p_.hx, (d * p_.B + b) * p_.R(), p_.R(), Rp_, to);
      }
    }
    if (!kConvert) return;
    for (int64_t s = s0; s < s1; ++s) {
      for (int64_t b = rows.begin; b < least(rows.end, steps.alive(s)); ++b) {
        const int64_t k = (s - s0) * p_.B + b;
        if (kConvertOperands)
          convert(x_ + k * p_.I, at(p_.input, p_.input_offset(steps.t(s), b)), p_.I);
        if (p_.grad_output)
          convert(dy_ + k * p_.R(), at(p_.grad_output, output_offset(d, steps, s, b)), p_.R());
        if (C::saved)
          convert(saved_ + k * C::saved * Hp_, at(p_.reserve, reserve_offset(d, steps, s, b)),
                  C::saved * Hp_);
      }
    }
  }

  // Rows of the batch and, with offset and stride, where theirs are in an array of rows.
  template <class T>
  struct Located {
    T* first;
    int64_t stride;
  };
  Located<const F> incoming(int d, const Steps& steps, int64_t s, int64_t j, int64_t b) const {
    if (!p_.grad_output) return {nullptr, 0};
    if constexpr (kConvert)
      return {dy_ + (j * p_.B + b) * p_.R(), p_.R()};
    else
      return {at(p_.grad_output, output_offset(d, steps, s, b)), p_.directions * p_.R()};
  }
  Located<const F> saved(int d, const Steps& steps, int64_t s, int64_t j, int64_t b) const {
    if constexpr (kConvert)
      return {saved_ + (j * p_.B + b) * C::saved * Hp_, C::saved * Hp_};
    else if constexpr (C::saved == 0)
      return {nullptr, 0};
    else
      return {at(p_.reserve, reserve_offset(d, steps, s, b)), C::saved * Hp_};
  }

  void step(int d, const Steps& steps, int64_t s, int64_t s0, Range rows, Range groups,
            const Team& team) {
    const int64_t j = s - s0, alive = steps.alive(s), after = steps.alive_after(s);
    const bool meet = plan_.split == Split::units;
    // Rows that go on after this step have dgates to take over; for the others it is the last one.
    const Range going{rows.begin, most(rows.begin, least(rows.end, after))};
    const Range ending{most(rows.begin, after), most(going.end, least(rows.end, alive))};
    if (p_.P) {
      const Range mine = group_share(state_, plan_, team);
      projected_gradient(d, steps, s, j, going, true, mine);
      projected_gradient(d, steps, s, j, ending, false, mine);
      if (meet) team.sync();
    }
    cell_gradient<Last>(d, steps, s, j, going, true, groups);
    cell_gradient<Last>(d, steps, s, j, ending, false, groups);
    if (meet) team.sync();
    if constexpr (kDivided) {
      cell_gradient<First>(d, steps, s, j, {going.begin, ending.end}, true, groups);
      if (meet) team.sync();
    }
    if (p_.grad_hx || p_.grad_cx) {
      const int64_t before = s > 0 ? steps.alive(s - 1) : 0;
      const Range starting{most(rows.begin, before), most(rows.begin, least(rows.end, alive))};
      if (starting.begin < starting.end)
        state_gradient(d, j, starting, group_share(state_, plan_, team), groups);
    }
  }

  // The product of dgates rows of chunk step j with W_hh, for columns of one group.
  LinearTile<E, F> recurrent_tile(int64_t group) const {
    LinearTile<E, F> tile;
    tile.segments = {First::products, p_.H, Hp_};
    tile.w = w_hh_ + state_.begin(group) * L * First::products * depth(p_.H);
    tile.column_stride = L;
    tile.columns = L;
    return tile;
  }

  // Projected: dr = dy + (dgates_next W_hh, or dhn), kept for dW_hr.
  void projected_gradient(int d, const Steps& steps, int64_t s, int64_t j, Range rows, bool going,
                          Range groups) {
    F out[kMaxRows][kGroup * L];
    for (int64_t group = groups.begin; group < groups.end; ++group) {
      const int64_t column = state_.begin(group) * L, nv = state_.size(group);
      const int64_t valid = least(nv * L, p_.P - column);
      LinearTile<E, F> tile = recurrent_tile(group);
      if (!going) tile.segments.count = 0;
      const Tiles tiles(rows.size(), tile_rows(static_cast<int>(nv)));
      for (int64_t i = 0, b = rows.begin; i < tiles.count; b += tiles.size(i++)) {
        for (int64_t r = 0; r < tiles.size(i); ++r)
          tile.rows[r] = dgates(j + 1, b + r), tile.out[r] = out[r];
        linear(p_.B == 1 ? 0 : tiles.size(i), nv, tile);
        const Located<const F> dy = incoming(d, steps, s, j, b);
        for (int64_t r = 0; r < tiles.size(i); ++r) {
          for (int64_t u = 0; u < valid; ++u) {
            if (dy.first) out[r][u] += dy.first[r * dy.stride + column + u];
            if (!going) out[r][u] += carry_[(b + r) * Rp_ + column + u];
          }
          convert(dr_ + (j * p_.B + b + r) * Rp_ + column, out[r], nv * L);
        }
      }
    }
  }

  // One part of a step, which for most cells is all of it; in line as forward's.
  template <class Part>
  FUSEDRNN_INLINE void cell_gradient(int d, const Steps& steps, int64_t s, int64_t j, Range rows,
                                     bool going, Range groups) {
    // The product takes the other part's dgates and weights.
    constexpr bool kInner = kDivided && std::is_same_v<Part, First>;
    constexpr int kProducts = kInner ? Last::products : First::products;
    const auto run_tile = std::is_same_v<Part, First> ? tiles_.first : tiles_.last;
    GradTile<E, F> tile;
    tile.segments = p_.P    ? Segments{1, p_.P, 0}
                    : going ? Segments{kProducts, p_.H, Hp_}
                            : Segments{0, 0, 0};
    tile.carry_row = Rp_, tile.h_row = Rp_, tile.dc_row = kDivided ? Rp_ : Hp_;
    tile.grad_row = grad_row_, tile.hidden_row = Hp_, tile.Hp = Hp_;
    const Tiles tiles(rows.size(), tile_rows(kGroup));
    const E* const weights = p_.P ? w_hr_ : kInner ? last_w_hh_ : w_hh_;
    const int64_t unit_weights = p_.P ? depth(p_.P) : kProducts * depth(p_.H);
    // All parts' weights pass through the cache in a step.
    const int64_t step_weights = kDivided ? C::products * depth(p_.H) : unit_weights;
    const bool far = groups.size() * kGroup * L * step_weights * sizeof(E) > Ahead::kNear;
    for (int64_t i = 0; i < groups.size(); ++i) {
      const int64_t group = s % 2 ? groups.end - 1 - i : groups.begin + i;
      const int64_t unit = units_.begin(group) * L, nv = units_.size(group);
      tile.w = weights + unit * unit_weights;
      Ahead ahead;
      if (far && i + 1 < groups.size() && tile.segments.count) {
        const int64_t next = s % 2 ? group - 1 : group + 1;
        ahead.set(weights + units_.begin(next) * L * unit_weights,
                  units_.size(next) * L * unit_weights, unit_weights);
      }
      tile.units = least(p_.H - unit - (nv - 1) * L, L);
      for (int64_t k = 0, b = rows.begin; k < tiles.count; b += tiles.size(k++)) {
        const int64_t R = tiles.size(k), chunk_row = j * p_.B + b;
        for (int64_t r = 0; r < R; ++r)
          tile.rows[r] = p_.P     ? dr_ + (chunk_row + r) * Rp_
                         : kInner ? dgates(j, b + r) + Last::first_gate * Hp_
                                  : dgates(j + 1, b + r);
        tile.ahead = ahead.of_tile(k);
        const Located<const F> dy =
            p_.P || kInner ? Located<const F>{} : incoming(d, steps, s, j, b);
        tile.dy = dy.first ? dy.first + unit : nullptr, tile.dy_row = dy.stride;
        const bool carried = !p_.P && !kDivided && (C::has_carry || !going);
        tile.carry_in = carried ? carry_ + b * Rp_ + unit : nullptr;
        tile.carry_out = carry_ + b * Rp_ + unit;
        const Located<const F> kept = saved(d, steps, s, j, b);
        tile.saved = C::saved ? kept.first + Part::first_slot * Hp_ + unit : nullptr;
        tile.saved_row = kept.stride;
        tile.h = h_prev(C::has_carry ? j : j + 1, b) + unit;
        tile.dc = kDivided ? tile.carry_out : dc_ + b * Hp_ + unit;
        tile.grad = dgates(j, b) + Part::first_slot * Hp_ + unit;
        tile.hidden =
            p_.P || (kInner && wants_hidden_) ? hidden_ + chunk_row * Hp_ + unit : nullptr;
        run_tile(p_.B == 1 ? 0 : R, nv, tile);
      }
    }
  }

  // Rows whose first step this is: gradients of their initial state.
  void state_gradient(int d, int64_t j, Range rows, Range state_groups, Range groups) {
    if (p_.grad_hx) {
      F out[kMaxRows][kGroup * L];
      for (int64_t group = state_groups.begin; group < state_groups.end; ++group) {
        const int64_t column = state_.begin(group) * L, nv = state_.size(group);
        const int64_t valid = least(nv * L, p_.R() - column);
        LinearTile<E, F> tile = recurrent_tile(group);
        const Tiles tiles(rows.size(), tile_rows(static_cast<int>(nv)));
        for (int64_t i = 0, b = rows.begin; i < tiles.count; b += tiles.size(i++)) {
          for (int64_t r = 0; r < tiles.size(i); ++r)
            tile.rows[r] = dgates(j, b + r), tile.out[r] = out[r];
          if (in_place_) {
            for (int64_t r = 0; r < tiles.size(i); ++r)
              row_times_weights(tile.rows[r], First::products, Hp_, gate_of_product<First>,
                                at(p_.weights[d].w_hh, 0), p_.H, p_.R(), column, valid, out[r]);
          } else {
            linear(p_.B == 1 ? 0 : tiles.size(i), nv, tile);
          }
          for (int64_t r = 0; r < tiles.size(i); ++r) {
            if (C::has_carry)
              for (int64_t u = 0; u < valid; ++u) out[r][u] += carry_[(b + r) * Rp_ + column + u];
            convert(at(p_.grad_hx, (d * p_.B + b + r) * p_.R() + column), out[r], valid);
          }
        }
      }
    }
    if (p_.grad_cx) {
      const int64_t first = units_.begin(groups.begin) * L;
      const int64_t last = least(units_.begin(groups.end) * L, p_.H);
      for (int64_t b = rows.begin; b < rows.end; ++b)
        convert(at(p_.grad_cx, (d * p_.B + b) * p_.H + first), dc_ + b * Hp_ + first, last - first);
    }
  }

  // dx = dgates W_ih for this thread's share of the chunk's rows. The reverse direction has an
  // array of its own, since both directions may run at once; `backward` adds them.
  void input_gradient(int d, const Steps& steps, int64_t s0, int64_t s1, const Team& team) {
    S* const grad_input = d == 0 ? at(p_.grad_input, 0) : grad_input_reverse_;
    if (in_place_) return input_gradient_in_place(d, steps, grad_input, team);
    F out[kMaxRows][kGroup * L];
    for (int64_t group = 0; group < inputs_.count; ++group) {
      const int64_t column = inputs_.begin(group) * L, nv = inputs_.size(group);
      const int64_t valid = least(nv * L, p_.I - column);
      LinearTile<E, F> tile;
      tile.segments = {C::inputs, p_.H, Hp_};
      tile.w = w_ih_ + column * C::inputs * depth(p_.H);
      tile.column_stride = L;
      tile.columns = L;
      const int64_t widest = tile_rows(static_cast<int>(nv));
      S* to[kMaxRows];
      int64_t filled = 0;
      const auto flush = [&] {
        if (!filled) return;
        linear(p_.rows == 1 ? 0 : filled, nv, tile);
        for (int64_t r = 0; r < filled; ++r) convert(to[r], out[r], valid);
        filled = 0;
      };
      each_row(steps, s0, s1, team, [&](int64_t s, int64_t b, int64_t) {
        tile.rows[filled] = dgates(s - s0, b) + (C::grads - C::inputs) * Hp_;
        tile.out[filled] = out[filled];
        to[filled] = grad_input + steps.row(s, b) * p_.I + column;
        if (++filled == widest) flush();
      });
      flush();
    }
  }

  void input_gradient_in_place(int d, const Steps& steps, S* grad_input, const Team& team) {
    const Range groups = share(inputs_.count, team.rank, team.size);
    F out[kGroup * L];
    for (int64_t b = 0; b < p_.B; ++b)
      for (int64_t group = groups.begin; group < groups.end; ++group) {
        const int64_t column = inputs_.begin(group) * L;
        const int64_t valid = least(inputs_.size(group) * L, p_.I - column);
        row_times_weights(
            dgates(0, b) + (C::grads - C::inputs) * Hp_, C::inputs, Hp_, [](int g) { return g; },
            at(p_.weights[d].w_ih, 0), p_.H, p_.I, column, valid, out);
        convert(grad_input + steps.row(0, b) * p_.I + column, out, valid);
      }
  }

  int64_t rows_of(const Steps& steps, int64_t s0, int64_t s1) const {
    int64_t total = 0;
    for (int64_t s = s0; s < s1; ++s) total += steps.alive(s);
    return total;
  }

  // Calls visit(s, b, k) for this thread's share of the chunk's rows, k counting all of them;
  // shares begin at a multiple of kPair.
  template <class Visit>
  void each_row(const Steps& steps, int64_t s0, int64_t s1, const Team& team, Visit visit) const {
    const Range mine = share(div_up(rows_of(steps, s0, s1), kPair), team.rank, team.size);
    int64_t k = 0;
    for (int64_t s = s0; s < s1 && k < mine.end * kPair; ++s) {
      const int64_t n = steps.alive(s), first = most<int64_t>(mine.begin * kPair - k, 0);
      for (int64_t b = first; b < least(n, mine.end * kPair - k); ++b) visit(s, b, k + b);
      k += n;
    }
  }

  // Gathers x, h_prev and hidden of the chunk's rows into panels; returns their K.
  int64_t pack_columns(const Steps& steps, int64_t s0, int64_t s1, const Team& team) {
    const int64_t total = rows_of(steps, s0, s1), K = depth(total);
    struct Rows {
      const E *x, *h, *hidden;
    } first{};
    const auto put = [&](const Rows& a, const Rows& b, int64_t k) {
      if (wants_w_ih_) x_panels_.put(a.x, b.x, k, K);
      if (wants_w_hh_) h_panels_.put(a.h, b.h, k, K);
      if (wants_hidden_) hidden_panels_.put(a.hidden, b.hidden, k, K);
    };
    each_row(steps, s0, s1, team, [&](int64_t s, int64_t b, int64_t k) {
      const int64_t chunk_row = (s - s0) * p_.B + b;
      Rows row{nullptr, h_prev(s - s0, b), hidden_ + (hidden_ ? chunk_row * Hp_ : 0)};
      if constexpr (kConvertOperands)
        row.x = x_ + chunk_row * p_.I;
      else
        row.x = at(p_.input, p_.input_offset(steps.t(s), b));
      if (kPair == 1)
        put(row, Rows{}, k);
      else if (k % kPair)
        put(first, row, k - 1);
      else if (k + 1 == total)
        put(row, Rows{}, k);
      else
        first = row;
    });
    return K;
  }

  // A block of kBlock values of each of the chunk's rows, [k][kBlock] (or [k / 2][kBlock][2]),
  // zeros beyond `valid`.
  template <class RowOf>
  void pack_block(const Steps& steps, int64_t s0, int64_t s1, int64_t valid, RowOf row_of, E* to) {
    constexpr E zeros[kBlock] = {};
    E first[kBlock], second[kBlock];
    const auto whole = [&](const E* row, E* copy) __attribute__((always_inline)) {
      if (valid == kBlock) return row;
      for (int64_t r = 0; r < kBlock; ++r) copy[r] = r < valid ? row[r] : E{};
      return static_cast<const E*>(copy);
    };
    const auto put = [&](const E* a, const E* b) __attribute__((always_inline)) {
      store_block(to, a, b);
      to += kBlock * kPair;
    };
    const E* waiting = nullptr;  // the first of a pair
    for (int64_t s = s0; s < s1; ++s)
      for (int64_t b = 0, n = steps.alive(s); b < n; ++b) {
        const E* const row = row_of(s - s0, b);
        if (kPair == 1)
          put(whole(row, first), nullptr);
        else if (!waiting)
          waiting = whole(row, first);
        else
          put(waiting, whole(row, second)), waiting = nullptr;
      }
    if (waiting) put(waiting, zeros);
  }

  F* total(F* scratch, void* direct) const {
    if constexpr (kConvert)
      return direct ? scratch : nullptr;
    else
      return static_cast<F*>(direct);
  }

  void weight_gradients(int d, const Steps& steps, int64_t s0, int64_t s1, int64_t K, bool first,
                        const Team& team) {
    const WeightGradients& g = p_.grad_weights[d];
    F* const w_ih = total(total_.w_ih, g.w_ih);
    F* const w_hh = total(total_.w_hh, g.w_hh);
    F* const w_hr = total(total_.w_hr, g.w_hr);
    F* const b_ih = total(total_.b_ih, g.b_ih);
    F* const b_hh = total(total_.b_hh, g.b_hh);
    const Range mine = share(C::grads * blocks_, team.rank, team.size);
    if (w_ih || w_hh || b_ih || b_hh) {
      for (int64_t i = mine.begin; i < mine.end; ++i) {
        const int64_t slot = i / blocks_, unit = i % blocks_ * kBlock;
        E* const a = a_ + i * kBlock * K;
        pack_block(
            steps, s0, s1, least<int64_t>(kBlock, p_.H - unit),
            [&](int64_t j, int64_t b) { return dgates(j, b) + slot * Hp_ + unit; }, a);
        add_bias(a, K, slot, unit, b_ih, b_hh, first);
      }
      // For the grad slots in [first_slot, end_slot).
      const auto products = [&](const Panels<E, F>& panels, F* out, bool recurrent, int first_slot,
                                int end_slot) {
        for (int64_t group = 0; out && group < panels.groups.count; ++group)
          for (int64_t i = mine.begin; i < mine.end; ++i) {
            const int64_t slot = i / blocks_, unit = i % blocks_ * kBlock;
            const int gate = gate_of(static_cast<int>(slot), recurrent);
            if (gate < 0 || slot < first_slot || slot >= end_slot) continue;
            panels.multiply_block(a_ + i * kBlock * K, K,
                                  out + (gate * p_.H + unit) * panels.columns,
                                  least<int64_t>(kBlock, p_.H - unit), !first, group);
          }
      };
      constexpr int kFirstSlots = kDivided ? First::products : C::grads;
      products(x_panels_, w_ih, false, 0, C::grads);
      products(h_panels_, w_hh, true, 0, kFirstSlots);
      if constexpr (kDivided) products(hidden_panels_, w_hh, true, kFirstSlots, C::grads);
    }
    if (w_hr) {
      const Range blocks = share(projected_blocks_, team.rank, team.size);
      for (int64_t i = blocks.begin; i < blocks.end; ++i) {
        const int64_t unit = i * kBlock, valid = least<int64_t>(kBlock, p_.P - unit);
        E* const a = a_projected_ + i * kBlock * K;
        pack_block(
            steps, s0, s1, valid,
            [&](int64_t j, int64_t b) { return dr_ + (j * p_.B + b) * Rp_ + unit; }, a);
        for (int64_t group = 0; group < hidden_panels_.groups.count; ++group)
          hidden_panels_.multiply_block(a, K, w_hr + unit * p_.H, valid, !first, group);
      }
    }
  }

  // Torch's gate that a grad slot is of, in the recurrent or the input weights; -1 if in neither.
  static int gate_of(int slot, bool recurrent) {
    if (recurrent) return slot < C::products ? C::gate_of_product(slot) : -1;
    return slot - (C::grads - C::inputs);
  }

  void add_bias(const E* a, int64_t K, int64_t slot, int64_t unit, F* b_ih, F* b_hh,
                bool first) const {
    // Sums of sums of 32: a long chain would round too often.
    constexpr int64_t kRows = 32;
    F sum[kBlock] = {};
    for (int64_t k0 = 0; k0 < K; k0 += kRows) {
      F part[kBlock] = {};
      for (int64_t k = k0; k < least(k0 + kRows, K); k += kPair) add_block(part, a + k * kBlock);
      for (int r = 0; r < kBlock; ++r) sum[r] += part[r];
    }
    for (int side = 0; side < 2; ++side) {
      const bool recurrent = side == 1;
      F* const out = recurrent ? b_hh : b_ih;
      const int gate = gate_of(static_cast<int>(slot), recurrent);
      if (!out || gate < 0) continue;
      F* const to = out + gate * p_.H + unit;
      for (int64_t r = 0; r < least<int64_t>(kBlock, p_.H - unit); ++r)
        to[r] = first ? sum[r] : to[r] + sum[r];
    }
  }

  // The chunk's first step becomes the step after the next chunk, which has `length` steps.
  void hand_over(int64_t length, const Team& team) {
    team.sync();
    const Range rows = share(p_.B, team.rank, team.size);
    for (int64_t b = rows.begin; b < rows.end; ++b)
      __builtin_memcpy(dgates(length, b), dgates(0, b), grad_row_ * sizeof(E));
  }

  void store_totals(int d, const Team& team) {
    team.sync();
    const WeightGradients& g = p_.grad_weights[d];
    const int64_t GH = gates_of(p_.cell) * p_.H;
    const auto put = [&](void* to, const F* from, int64_t n) {
      const Range mine = share(n, team.rank, team.size);
      if (to) convert(at(to, mine.begin), from + mine.begin, mine.size());
    };
    put(g.w_ih, total_.w_ih, GH * p_.I);
    put(g.w_hh, total_.w_hh, GH * p_.R());
    put(g.w_hr, total_.w_hr, p_.P * p_.H);
    put(g.b_ih, total_.b_ih, GH);
    put(g.b_hh, total_.b_hh, GH);
  }

  struct Totals {
    F *w_ih = nullptr, *w_hh = nullptr, *w_hr = nullptr, *b_ih = nullptr, *b_hh = nullptr;
  };

  const BackwardProblem& p_;
  const Plan& plan_;
  S* const grad_input_reverse_;
  const int64_t Hp_, Rp_, grad_row_;
  const Groups units_, state_, inputs_;  // column groups: of units, of h, of input values
  const GradTiles<E, F> tiles_ = GradTiles<E, F>::of(C::cell);
  const int64_t blocks_, projected_blocks_;
  bool in_place_, recurrent_, wants_w_ih_ = false, wants_w_hh_ = false, wants_w_hr_ = false,
                              wants_hidden_ = false, wants_bias_ = false;
  E *w_hh_ = nullptr, *last_w_hh_ = nullptr, *w_ih_ = nullptr, *w_hr_ = nullptr;
  E *dgates_, *h_prev_, *x_ = nullptr, *dr_ = nullptr, *hidden_ = nullptr;
  E *a_ = nullptr, *a_projected_ = nullptr;
  F *carry_, *dc_ = nullptr, *dy_ = nullptr, *saved_ = nullptr;
  Panels<E, F> x_panels_, h_panels_, hidden_panels_;
  Totals total_;
};

template <class S, class F, class C>
int64_t backward_of_cell(const BackwardProblem& p, const Plan& plan, ParallelFor parallel_for,
                         void* scratch) {
  using Walk = BackwardWalk<S, F, C>;
  Layout layout(scratch);
  const int64_t inputs = p.rows * p.I;
  S* const reverse = p.directions == 2 && p.grad_input ? layout.template take<S>(inputs) : nullptr;
  Walk first(p, plan, reverse, layout);
  Walk second = plan.direction_teams > 1 ? Walk(p, plan, reverse, layout) : first;
  if (!scratch) return layout.bytes();
  run_directions(p, plan, parallel_for,
                 [&](int d, const Team& team) { (d == 0 ? first : second).run(d, team); });
  if (reverse) {
    struct Sum {
      S* to;
      const S* from;
      int64_t n;
    } sum{static_cast<S*>(p.grad_input), reverse, inputs};
    run_team(
        parallel_for, plan.threads, static_cast<double>(inputs),
        [](int rank, int size, void* sum_) {
          const Sum& s = *static_cast<const Sum*>(sum_);
          const Range mine = share(s.n, rank, size);
          for (int64_t i = mine.begin; i < mine.end; i += kLanes<F>) {
            const int64_t n = mine.end - i;
            store_n(s.to + i, load_n(s.to + i, n) + load_n(s.from + i, n), n);
          }
        },
        &sum);
  }
  return layout.bytes();
}

template <Dtype dtype>
int64_t backward(const BackwardProblem& p, const Plan& plan, ParallelFor parallel_for,
                 void* scratch) {
  return with_cell(p.cell, [&](auto cell) {
    return backward_of_cell<StorageOf<dtype>, ComputeOf<dtype>, decltype(cell)>(
        p, plan, parallel_for, scratch);
  });
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
