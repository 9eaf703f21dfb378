// Backward of one layer: the walk of forward in reverse, with dgates and dh.
//
//   prepare   make panels of the weights for the transposed products                  (shared out)
//   chunk     gather h_prev (and, in half precision, everything else) for the chunk's rows
//     step    dh = dy + dgates_next W_hh, and from the registers through the cell to dgates
//   then      dx = dgates W_ih;   dW += dgates^T [x | h_prev];   db += sum of dgates
//
// With several stages (cells/cell.h) a step does this once for each, from the last stage to the
// first. The last stage's product takes the dgates that the first stage had in the step after. The
// product of any other stage takes the dgates of the stage after it, in this step.
//
// Chunks keep dgates small and in cache.
#pragma once

#include "grad_tile.h"
#include "input_gradient.h"
#include "kernels.h"
#include "panels.h"
#include "weight_gradients.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

template <class S, class F>
class BackwardWalk {
  using Walked = Chunk<S, F>;
  using E = typename Walked::E;
  using Located = typename Walked::Located;
  static constexpr int64_t L = kLanes<F>;
  static constexpr int64_t kMostRows = 8;

 public:
  BackwardWalk(const BackwardProblem& p, const Plan& plan, S* grad_input_reverse, Arena& arena)
      : p_(p),
        plan_(plan),
        cell_(p.facts()),
        stages_(cell_.stages),
        m_(p.modifiers),
        is_modified_(m_.any() || p.has_grad_states()),
        unmixes_(cell_.last().backward_needs == Needs::h && m_.keep[0] && !p.P),
        in_place_(plan.in_place && p.T == 1 && stages_ == 1),
        wants_states_(p.wants_states() || p.wants_reset_states()),
        units_(make_groups(p.H, L, kGroup, plan)),
        state_(make_groups(p.R(), L, kGroup, plan)),
        chunk_(p, plan, GradientsOfWeights<S, F>::wants(p, &WeightGradients::w_hh), arena),
        inputs_(p, in_place_, grad_input_reverse, arena),
        weights_(p, plan, arena) {
    const bool recurrent = p.T > 1 || p.grad_hx[0] || p.grad_reset_states[0];
    for (int i = 0; i < stages_; ++i)
      if (i > 0 || (recurrent && !in_place_))
        w_hh_[i] = arena.take<E>(state_.vectors * L * cell_.stage[i].products * depth(p.H));
    if (p.P) w_hr_ = arena.take<E>(units_.vectors * L * depth(p.P));
    carry_ = arena.take<F>(p.B * chunk_.Rp);
    if (cell_.states > 1) dstates_ = arena.take<F>((cell_.states - 1) * p.B * chunk_.Hp);
    const int handed = p.program ? p.program->stage[stages_ - 1].handed_back : 0;
    if (handed) handed_ = arena.take<F>(handed * p.B * chunk_.Hp);
    if (m_.recurrent_factor) factor_ = arena.take<F>(p.B * chunk_.Hp);
    if (m_.keep[0]) keep_ = arena.take<F>(p.B * chunk_.Hp);
    if (unmixes_) own_h_ = arena.take<E>(p.B * chunk_.Rp);
    if (m_.reset) nothing_ = arena.take<E>(chunk_.grad_row);
    for (int i = 1; i < cell_.states; ++i)
      if (m_.keep[i]) kept_[i] = arena.take<F>(p.B * chunk_.Hp);
    if (p.program) memory_ = ProgramMemory<F>(*p.program, kGroup, plan.threads, arena);
    for (int i = 0; p.program && i < stages_; ++i) bind(i, arena);
    if (cell_.unit_weights) w_unit_ = arena.take<F>(cell_.unit_weights * chunk_.Hp);
  }

  void run(int d, const Team& team) {
    const Steps steps{p_, d == 1};
    const Range rows = row_share(p_, plan_, team), groups = group_share(units_, plan_, team);
    ProgramScratch<F> scratch;
    if (p_.program) scratch = ProgramScratch<F>(memory_, team.rank);
    prepare(d, team);
    for (int64_t s1 = p_.T; s1 > 0; s1 -= plan_.backward_steps) {
      const int64_t s0 = most<int64_t>(s1 - plan_.backward_steps, 0);
      chunk_.gather(d, steps, s0, s1, team);
      team.sync();
      for (int64_t s = s1 - 1; s >= s0; --s) step(d, steps, s, s0, rows, groups, team, scratch);
      team.sync();
      const int64_t K = weights_.gather(chunk_, steps, s0, s1, team);
      inputs_.run(chunk_, d, steps, s0, s1, team);
      team.sync();
      weights_.add(chunk_, d, steps, s0, s1, K, s1 == p_.T, team);
      if (s0 > 0) chunk_.hand_over(least(s0, plan_.backward_steps), team);
    }
    weights_.store(d, team);
  }

 private:
  static int64_t depth(int64_t K) { return Walked::depth(K); }
  static const S* at(const void* p, int64_t offset) { return Walked::at(p, offset); }
  static S* at(void* p, int64_t offset) { return Walked::at(p, offset); }
  F* dstate(int i) const { return dstates_ + (i - 1) * p_.B * chunk_.Hp; }  // i > 0: not h

  // What the tiles of a program's stage need, but for what is another's at each tile.
  void bind(int stage, Arena& arena) {
    const StageFacts& facts = cell_.stage[stage];
    const StageProgram& program = p_.program->stage[stage];
    const PassKind kind =
        chunk_.restored(stage, 0, 0) ? PassKind::backward_restoring : PassKind::backward;
    const Pass& pass = program.pass(kind);
    // As many as there may be: what is only measured has nothing restored.
    BoundOp* const ops = arena.take<BoundOp>(
        static_cast<int64_t>(program.pass(PassKind::backward_restoring).ops.size()));
    if (!ops) return;
    constexpr bool kSame = std::is_same_v<E, F>;
    const int64_t Hp = chunk_.Hp, Rp = chunk_.Rp;
    BoundSpaces<F> at(memory_);
    at[Space::saved] = {Hp, cell_.saved * Hp};
    if (kSame) at[Space::h].row = Rp;
    if (kSame) at[Space::gradient] = {Hp, chunk_.grad_row};
    at[Space::state] = at[Space::handed] = {p_.B * Hp, Hp};
    at[Space::carry].row = Rp;
    at[Space::weight] = {Hp, 0};
    ProgramGrads<F>& to = programs_[stage];
    to.pass = at.bind(pass, ops, compiled_pass<F>(*p_.program, stage, kind));
    to.saved = cell_.saved, to.grads = cell_.grads, to.gradients = pass.gradients;
    to.has_carry = facts.has_carry, to.reads_h = facts.backward_needs != Needs::nothing;
    reads_step_inputs_[stage] = reads(pass, Space::step_input);
    of_step_inputs_[stage] = p_.grad_step_inputs ? pass.of_step_inputs : 0;
  }

  void prepare(int d, const Team& team) {
    const Weights& w = p_.weights[d];
    const auto mine = [&](const Groups& groups) {
      return share(groups.count, team.rank, team.size);
    };
    for (int i = 0; i < stages_; ++i)
      if (w_hh_[i])
        make_column_panels(at(w.w_hh, 0), p_.H, p_.R(), cell_.stage[i].products,
                           cell_.stage[i].gate_of_product, state_, mine(state_), w_hh_[i]);
    inputs_.prepare(d, team);
    if (p_.P)
      make_column_panels(at(w.w_hr, 0), p_.P, p_.H, 1, kFirstGate, units_, mine(units_), w_hr_);
    if (nothing_ && team.rank == 0) fill(nothing_, chunk_.grad_row);
    if (w_unit_ && team.rank == 0) pad_units<S>(p_, w.w_unit, cell_.unit_weights, w_unit_);
    const Range rows = share(p_.B, team.rank, team.size);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const auto load = [&](int i, int64_t padded, F* to) {
        const int64_t n = p_.width(i);
        Walked::load_row(p_.grad_hn[i], (d * p_.B + b) * n, n, padded, to + b * padded);
      };
      load(0, chunk_.Rp, carry_);
      if (factor_) fill(factor_ + b * chunk_.Hp, chunk_.Hp);
      if (keep_) fill(keep_ + b * chunk_.Hp, chunk_.Hp);
      if (own_h_) fill(own_h_ + b * chunk_.Rp, chunk_.Rp);
      for (int i = 1; i < cell_.states; ++i) load(i, chunk_.Hp, dstate(i));
    }
  }

  void step(int d, const Steps& steps, int64_t s, int64_t s0, Range rows, Range groups,
            const Team& team, ProgramScratch<F>& scratch) {
    const int64_t j = s - s0, alive = steps.alive(s), after = steps.alive_after(s);
    const bool meet = plan_.split == Split::units;
    // Rows that go on after this step have dgates to take over; the others end with this step.
    const Range going{rows.begin, most(rows.begin, least(rows.end, after))};
    const Range ending{most(rows.begin, after), most(going.end, least(rows.end, alive))};
    const Range mine = group_share(state_, plan_, team);
    if (m_.reset)
      for (int64_t b = going.begin; b < going.end; ++b)
        if (boundary_after(steps, s, b) >= 0) cut(d, steps, s, j, b, mine, groups);
    if (p_.P) {
      projected_gradient(d, steps, s, j, going, true, mine);
      projected_gradient(d, steps, s, j, ending, false, mine);
      if (meet) team.sync();
    }
    const Range all{going.begin, ending.end};
    const bool mixed = is_modified_ && begin_states(d, steps, s, j, all, groups);
    for (int i = stages_; i-- > 0;) {
      if (factor_ && !p_.P)  // the product's, which the last stage takes from the step after
        is_last(i) ? load_rows(m_.recurrent_factor, d, steps, s + 1, going, groups, factor_)
                   : load_rows(m_.recurrent_factor, d, steps, s, all, groups, factor_);
      if (is_last(i)) {
        stage_gradient(i, d, steps, s, j, going, true, mixed, groups, scratch);
        stage_gradient(i, d, steps, s, j, ending, false, mixed, groups, scratch);
      } else {
        stage_gradient(i, d, steps, s, j, all, true, mixed, groups, scratch);
        if (factor_) mask_restored(i, j, all, groups);
      }
      if (meet) team.sync();
    }
    if (is_modified_) end_states(all, groups);
    if (!wants_states_) return;
    const int64_t before = s > 0 ? steps.alive(s - 1) : 0;
    const Range starting{most(rows.begin, before), most(rows.begin, least(rows.end, alive))};
    if (starting.begin < starting.end) state_gradients(d, steps, s, j, starting, mine, groups);
  }

  // ---- modifiers, for a thread's own rows, columns and units ------------------------------------

  // The columns of h, or the units, in a thread's groups.
  Range columns_of(const Groups& all, Range groups, int64_t n) const {
    return {all.begin(groups.begin) * L, least(all.begin(groups.end) * L, n)};
  }
  // The boundary between step s and the step that is walked after it.
  int64_t boundary_after(const Steps& steps, int64_t s, int64_t b) const {
    return p_.boundary(steps.t(s + 1), b, steps.reverse);
  }

  FUSEDRNN_RARE void load_rows(const Spread<const void>& from, int d, const Steps& steps, int64_t s,
                               Range rows, Range groups, F* to) {
    if (s >= p_.T) return;
    const Range units = columns_of(units_, groups, p_.H);
    for (int64_t b = rows.begin; b < rows.end; ++b)
      convert(to + b * chunk_.Hp + units.begin, values_of<S>(from, steps.t(s), d, b) + units.begin,
              units.size());
  }

  // What a stage before the last gave, restored, is multiplied by what it was in forward. The
  // factor is that of the same step, which its gradient just had.
  FUSEDRNN_RARE void mask_restored(int stage, int64_t j, Range rows, Range groups) {
    const Range units = columns_of(units_, groups, p_.H);
    for (int64_t b = rows.begin; b < rows.end; ++b)
      if (E* const row = chunk_.restored(stage, j, b))
        multiply_row<F>(row, factor_ + b * chunk_.Hp, units, row);
  }

  // The gradients of the states after h: what each step adds, and what passes the cell by. Returns
  // whether what the cell gave as h is in own_h_, because it was mixed with h before.
  FUSEDRNN_RARE bool begin_states(int d, const Steps& steps, int64_t s, int64_t j, Range rows,
                                  Range groups) {
    const Range units = columns_of(units_, groups, p_.H);
    bool mixed = false;
    for (int64_t b = rows.begin; keep_ && !p_.P && b < rows.end; ++b)
      mixed |=
          load_shares<F>(values_of<S>(m_.keep[0], steps.t(s), d, b), units, keep_ + b * chunk_.Hp);
    mixed &= unmixes_;
    for (int64_t b = rows.begin; mixed && b < rows.end; ++b)
      unmix_row<F, S>(chunk_.h(j, b), chunk_.h_prev(j, b), keep_ + b * chunk_.Hp, units,
                      own_h_ + b * chunk_.Rp);
    for (int i = 1; i < cell_.states; ++i) {
      if (!kept_[i] && !p_.grad_states[i]) continue;
      for (int64_t b = rows.begin; b < rows.end; ++b) {
        F* const gradient = dstate(i) + b * chunk_.Hp;
        if (p_.grad_states[i])
          add_row<F>(at(p_.grad_states[i], (steps.row(s, b) * p_.directions + d) * p_.H), units,
                     gradient);
        if (kept_[i])
          split_row<F>(values_of<S>(m_.keep[i], steps.t(s), d, b), units, gradient,
                       kept_[i] + b * chunk_.Hp);
      }
    }
    return mixed;
  }
  FUSEDRNN_RARE void end_states(Range rows, Range groups) {
    const Range units = columns_of(units_, groups, p_.H);
    for (int i = 1; i < cell_.states; ++i)
      for (int64_t b = rows.begin; kept_[i] && b < rows.end; ++b)
        add_row<F>(kept_[i] + b * chunk_.Hp, units, dstate(i) + b * chunk_.Hp);
  }

  // A boundary after step s: what would cross it belongs to the states that were put there.
  FUSEDRNN_RARE void cut(int d, const Steps& steps, int64_t s, int64_t j, int64_t b,
                         Range columns_groups, Range groups) {
    give_reset_states(d, steps, s + 1, j + 1, b, columns_groups, groups);
    const Range columns = columns_of(state_, columns_groups, p_.R());
    fill(carry_ + b * chunk_.Rp + columns.begin, columns.size());
    const Range units = columns_of(units_, groups, p_.H);
    for (int i = 1; i < cell_.states; ++i)
      fill(dstate(i) + b * chunk_.Hp + units.begin, units.size());
  }

  // Adds the gradients of a row's states before step s to those of the states of its boundary.
  FUSEDRNN_RARE void give_reset_states(int d, const Steps& steps, int64_t s, int64_t j, int64_t b,
                                       Range columns_groups, Range groups) {
    const int64_t boundary = p_.boundary(steps.t(s), b, steps.reverse);
    const auto place = [&](int i) {
      const Spread<void>& to = p_.grad_reset_states[i];
      return to ? static_cast<F*>(to.data) + to.at(boundary, d, b) : nullptr;
    };
    if (F* const to = place(0))
      state_gradient(d, steps, s, j, {b, b + 1}, columns_groups,
                     [&](int64_t, int64_t column, const F* from, int64_t n) {
                       for (int64_t u = 0; u < n; ++u) to[column + u] += from[u];
                     });
    for (int i = 1; i < cell_.states; ++i)
      if (F* const to = place(i))
        add_row<F>(dstate(i) + b * chunk_.Hp, columns_of(units_, groups, p_.H), to);
  }

  // ---- a step -----------------------------------------------------------------------------------

  // The product of the first stage's dgates with its rows of W_hh, for the columns of one group.
  LinearTile<E, F> recurrent_tile(int64_t group) const {
    const int products = cell_.stage[0].products;
    LinearTile<E, F> tile;
    tile.segments = {products, p_.H, chunk_.Hp};
    tile.w = w_hh_[0] + state_.begin(group) * L * products * depth(p_.H);
    tile.column_stride = L;
    tile.columns = L;
    return tile;
  }

  // With a projection: dr = dy + (dgates_next W_hh, or dhn), kept for dW_hr.
  void projected_gradient(int d, const Steps& steps, int64_t s, int64_t j, Range rows, bool going,
                          Range groups) {
    F out[kMostRows][kGroup * L];
    for (int64_t group = groups.begin; group < groups.end; ++group) {
      const int64_t column = state_.begin(group) * L, nv = state_.size(group);
      const int64_t valid = least(nv * L, p_.P - column);
      LinearTile<E, F> tile = recurrent_tile(group);
      if (!going) tile.segments.count = 0;
      const Tiles tiles(rows.size(), tile_rows(static_cast<int>(nv)));
      for (int64_t i = 0, b = rows.begin; i < tiles.count; b += tiles.size(i++)) {
        for (int64_t r = 0; r < tiles.size(i); ++r)
          tile.rows[r] = dgates_after(steps, s, j, b + r), tile.out[r] = out[r];
        linear(p_.B == 1 ? 0 : tiles.size(i), nv, tile);
        const Located dy = chunk_.dy(d, steps, s, j, b);
        for (int64_t r = 0; r < tiles.size(i); ++r) {
          F* const carry = carry_ + (b + r) * chunk_.Rp + column;
          if (going) mask_product(d, steps, s + 1, b + r, column, valid, out[r]);
          for (int64_t u = 0; u < valid; ++u) {
            if (dy.first) out[r][u] += dy.first[r * dy.stride + column + u];
            if (!going || m_.keep[0]) out[r][u] += carry[u];
          }
          if (m_.keep[0])
            split_row<F>(values_of<S>(m_.keep[0], steps.t(s), d, b + r) + column, {0, valid},
                         out[r], carry);
          convert(chunk_.dr(j, b + r) + column, out[r], nv * L);
        }
      }
    }
  }

  // The dgates of the step after, for the product; after a boundary none.
  const E* dgates_after(const Steps& steps, int64_t s, int64_t j, int64_t b) const {
    if (m_.reset && s + 1 < p_.T && boundary_after(steps, s, b) >= 0) return nothing_;
    return chunk_.dgates(j + 1, b);
  }
  // The product of step s's dgates as the gradient of h before it: times the recurrent factor.
  void mask_product(int d, const Steps& steps, int64_t s, int64_t b, int64_t column, int64_t n,
                    F* product) const {
    if (m_.recurrent_factor)
      multiply_row<F>(product, values_of<S>(m_.recurrent_factor, steps.t(s), d, b) + column, {0, n},
                      product);
  }

  // One stage of a step, inlined as in forward.
  FUSEDRNN_INLINE void stage_gradient(int stage, int d, const Steps& steps, int64_t s, int64_t j,
                                      Range rows, bool going, bool mixed, Range groups,
                                      ProgramScratch<F>& scratch) {
    // The product takes the dgates and the weights of the stage that follows. After the last stage
    // that is the first one, of the step after.
    const bool is_last = this->is_last(stage);
    const int next_stage = is_last ? 0 : stage + 1;
    const StageFacts &facts = cell_.stage[stage], &following = cell_.stage[next_stage];
    const int64_t Hp = chunk_.Hp, Rp = chunk_.Rp;
    const auto run_tile = tiles_.stage[stage];
    GradTile<E, F> tile;
    tile.program = p_.program ? &programs_[stage] : nullptr, tile.scratch = &scratch;
    tile.segments = p_.P    ? Segments{1, p_.P, 0}
                    : going ? Segments{following.products, p_.H, Hp}
                            : Segments{0, 0, 0};
    tile.carry_row = Rp, tile.h_row = Rp, tile.dstate_row = Hp, tile.dstate_slot = p_.B * Hp;
    tile.grad_row = chunk_.grad_row, tile.result_row = Hp, tile.Hp = Hp;
    const Tiles tiles(rows.size(), tile_rows(kGroup));
    const E* const weights = p_.P ? w_hr_ : w_hh_[next_stage];
    const int64_t unit_weights = p_.P ? depth(p_.P) : following.products * depth(p_.H);
    // The weights of all stages pass through the cache in a step.
    const int64_t step_weights = stages_ > 1 ? cell_.products * depth(p_.H) : unit_weights;
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
      tile.unit_weights = w_unit_ + unit;
      for (int64_t k = 0, b = rows.begin; k < tiles.count; b += tiles.size(k++)) {
        const int64_t R = tiles.size(k);
        for (int64_t r = 0; r < R; ++r)
          tile.rows[r] =
              p_.P ? chunk_.dr(j, b + r)
                   : (is_last ? dgates_after(steps, s, j, b + r) : chunk_.dgates(j, b + r)) +
                         following.first_product * Hp;
        tile.ahead = ahead.of_tile(k);
        const Located dy = p_.P || !is_last ? Located{} : chunk_.dy(d, steps, s, j, b);
        tile.dy = dy.first ? dy.first + unit : nullptr, tile.dy_row = dy.stride;
        tile.carry = carry_ + b * Rp + unit;
        const bool carried = is_last && !p_.P && (cell_.has_carry || keep_ || !going);
        tile.carry_in = carried ? tile.carry : nullptr;
        const Located kept = chunk_.saved(d, steps, s, j, b);
        tile.saved = cell_.saved ? kept.first + unit : nullptr;
        tile.saved_row = kept.stride;
        tile.h = unit + (facts.backward_needs != Needs::h ? chunk_.h_prev(j, b)
                         : mixed                          ? own_h_ + b * Rp
                                                          : chunk_.h(j, b));
        const bool has_factor = factor_ && !p_.P && (going || !is_last);
        tile.factor = has_factor ? factor_ + b * Hp + unit : nullptr;
        tile.keep = keep_ && !p_.P && is_last ? keep_ + b * Hp + unit : nullptr;
        tile.dstates = dstates_ + b * Hp + unit;
        tile.handed = handed_ + b * Hp + unit;
        tile.grad = chunk_.dgates(j, b) + unit;
        E* const restored = chunk_.restored(stage, j, b);
        tile.result = restored ? restored + unit : nullptr;
        const Range columns{unit, unit + (nv - 1) * L + tile.units};
        if (reads_step_inputs_[stage])
          load_step_inputs<S>(m_.step_inputs, cell_.step_inputs, steps.t(s), d, b, R, columns,
                              scratch);
        run_tile(p_.B == 1 ? 0 : R, nv, tile);
        if (of_step_inputs_[stage])
          store_step_inputs<S>(p_.grad_step_inputs, of_step_inputs_[stage], steps.t(s), d, b, R,
                               columns, scratch);
      }
    }
  }

  // Rows whose first step this is: gradients of their initial states, or of those that replaced
  // them.
  void state_gradients(int d, const Steps& steps, int64_t s, int64_t j, Range rows,
                       Range state_groups, Range groups) {
    const auto to = [&](int i, int64_t b) {
      return p_.grad_hx[i] ? at(p_.grad_hx[i], (d * p_.B + b) * p_.width(i)) : nullptr;
    };
    if (p_.grad_hx[0])
      state_gradient(d, steps, s, j, rows, state_groups,
                     [&](int64_t b, int64_t column, const F* from, int64_t n) {
                       convert(to(0, b) + column, from, n);
                     });
    const Range units = columns_of(units_, groups, p_.H);
    for (int i = 1; i < cell_.states; ++i)
      for (int64_t b = rows.begin; p_.grad_hx[i] && b < rows.end; ++b)
        convert(to(i, b) + units.begin, dstate(i) + b * chunk_.Hp + units.begin, units.size());
    if (!m_.reset) return;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      if (p_.boundary(steps.t(s), b, steps.reverse) < 0) continue;
      give_reset_states(d, steps, s, j, b, state_groups, groups);
      for (int i = 0; i < cell_.states; ++i) {
        const Range mine = i == 0 ? columns_of(state_, state_groups, p_.R()) : units;
        if (S* const gradient = to(i, b)) fill(gradient + mine.begin, mine.size());
      }
    }
  }

  // The gradient of h before step s of some rows: store(b, column, values, n).
  template <class Store>
  void state_gradient(int d, const Steps& steps, int64_t s, int64_t j, Range rows, Range groups,
                      const Store& store) {
    const StageFacts& first = cell_.stage[0];
    F out[kMostRows][kGroup * L];
    for (int64_t group = groups.begin; group < groups.end; ++group) {
      const int64_t column = state_.begin(group) * L, nv = state_.size(group);
      const int64_t valid = least(nv * L, p_.R() - column);
      LinearTile<E, F> tile = recurrent_tile(group);
      const Tiles tiles(rows.size(), tile_rows(static_cast<int>(nv)));
      for (int64_t i = 0, b = rows.begin; i < tiles.count; b += tiles.size(i++)) {
        for (int64_t r = 0; r < tiles.size(i); ++r)
          tile.rows[r] = chunk_.dgates(j, b + r), tile.out[r] = out[r];
        if (in_place_) {
          for (int64_t r = 0; r < tiles.size(i); ++r)
            row_times_weights(tile.rows[r], first.products, chunk_.Hp, first.gate_of_product,
                              at(p_.weights[d].w_hh, 0), p_.H, p_.R(), column, valid, out[r]);
        } else {
          linear(p_.B == 1 ? 0 : tiles.size(i), nv, tile);
        }
        for (int64_t r = 0; r < tiles.size(i); ++r) {
          mask_product(d, steps, s, b + r, column, valid, out[r]);
          if (cell_.has_carry || keep_)
            for (int64_t u = 0; u < valid; ++u)
              out[r][u] += carry_[(b + r) * chunk_.Rp + column + u];
          store(b + r, column, out[r], valid);
        }
      }
    }
  }

  bool is_last(int stage) const { return stage + 1 == stages_; }

  const BackwardProblem& p_;
  const Plan& plan_;
  const Facts& cell_;
  const int stages_;
  const Modifiers& m_;
  const bool is_modified_;
  const bool unmixes_;  // the cell's backward needs its h, and finds it mixed with h before
  const bool in_place_, wants_states_;
  const Groups units_, state_;  // groups of columns: of units, and of h
  Walked chunk_;
  InputGradient<S, F> inputs_;
  GradientsOfWeights<S, F> weights_;
  const GradTiles<E, F> tiles_ = GradTiles<E, F>::of(p_);
  E *w_hh_[kMaxStages] = {}, *w_hr_ = nullptr;
  F *carry_, *dstates_ = nullptr;  // [B][Rp]: dh past the products; [states after h][B][Hp]
  ProgramGrads<F> programs_[kMaxStages];
  ProgramMemory<F> memory_;
  bool reads_step_inputs_[kMaxStages] = {};
  uint32_t of_step_inputs_[kMaxStages] = {};  // a bit for each gradient that a stage has to store
  F *w_unit_ = nullptr, *handed_ = nullptr;   // handed_: [slots][B][Hp], of a program's stages
  F *factor_ = nullptr, *keep_ = nullptr;     // [B][Hp], of a step
  E* own_h_ = nullptr;                        // [B][Rp], what the cell gave in a step; see unmixes_
  F* kept_[kMaxStates] = {};                  // [B][Hp], what of dstates passes the cell by
  E* nothing_ = nullptr;                      // dgates that are zero
};

template <Dtype dtype>
int64_t backward(const BackwardProblem& p, const Plan& plan, ParallelFor parallel_for,
                 void* scratch) {
  using S = StorageOf<dtype>;
  using F = ComputeOf<dtype>;
  using Walk = BackwardWalk<S, F>;
  Arena arena(scratch);
  const int64_t inputs = p.rows * p.I;
  S* const reverse = p.directions == 2 && p.grad_input ? arena.take<S>(inputs) : nullptr;
  Walk first(p, plan, reverse, arena);
  Walk second = plan.direction_teams > 1 ? Walk(p, plan, reverse, arena) : first;
  if (!scratch) return arena.bytes();
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
  return arena.bytes();
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
