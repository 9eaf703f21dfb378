// Forward of one layer: each direction is a walk over the steps by a team of threads.
//
//   prepare   make panels of the weights, unless made ahead; load the initial state    (shared out)
//   chunk     gates of the chunk's rows = bias + x W_ih^T, as one product        (own rows, units)
//     step    acc = gates + h W_hh^T, and from the registers straight through the cell
//
// With several stages (cells/cell.h) a step does this once for each. After the first stage, the
// product takes the operand that the stage before left for all units, instead of h.
//
// A thread computes only the gates that it will use itself, so the chunk needs no barrier. h is
// kept in two padded buffers: a step reads one and writes the other. c is updated in place. Steps
// take the groups of units forwards and backwards in turn: the weights read last, which are still
// in cache, come first in the next step.
//
//   gates     [chunk rows][input slot][Hp]     chunk row (s - s0) * B + b
//   h         [2][B][Rp]                     states  [those after h][B][Hp]
//   hidden    [B][Hp]  h before its projection
//   operand   [B][Hp]  for each stage but the first         handed  [handed slots][B][Hp]
//
// Modifiers act between the steps: when a step is done, each thread mixes its own states with those
// before (`end_step`), and makes them what the next step begins with (`begin_step`).
//
//   masked    [2][B][Rp]  h with its recurrent factor       before  [those after h][B][Hp]
#pragma once

#include "gate_tile.h"
#include "in_place.h"
#include "kernels.h"
#include "modifiers.h"
#include "panels.h"
#include "walk.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

template <class S, class F>
class ForwardWalk {
  using E = typename OperandOf<S>::type;
  static constexpr bool kConvert = !std::is_same_v<S, F>;          // from storage to compute type
  static constexpr bool kConvertOperands = !std::is_same_v<S, E>;  // and to that of operands
  static constexpr int64_t L = kLanes<F>;
  static constexpr int64_t kMaxRows = 8;

 public:
  ForwardWalk(const Problem& p, const Plan& plan, Arena& arena)
      : p_(p),
        plan_(plan),
        cell_(p.facts()),
        stages_(cell_.stages),
        m_(p.modifiers),
        is_modified_(m_.any()),
        wants_states_(p.wants_all_states()),
        Hp_(p.Hp()),
        Rp_(round_up(p.R(), kHiddenPadding)),
        outputs_(output_groups(p, L, plan_of_panels())) {
    for (int i = 0; i < stages_; ++i)
      groups_[i] = unit_groups(p, cell_.stage[i], L, plan_of_panels());
    for (int i = 0; i < stages_; ++i) {
      blocks_[i] = Blocks(cell_.stage[i]);
      widest_[i] = blocks_[i].widest(plan.fuse_input);
    }
    const int64_t chunk_rows = plan.forward_steps * p.B;
    if (p.has_panels) {
      // An arena takes writable memory, but nothing is written to these panels.
      Arena given(const_cast<void*>(p.panels));
      for (int d = 0; d < p.directions; ++d) panels_[d] = CellPanels<S, F>(p, Plan(), given);
    } else {
      panels_[0] = CellPanels<S, F>(p, plan, arena);
      for (int d = 1; d < p.directions; ++d) panels_[d] = panels_[0];
    }
    for (E*& h : h_) h = arena.take<E>(p.B * Rp_);
    if (cell_.states > 1) states_ = arena.take<F>((cell_.states - 1) * p.B * Hp_);
    const int handed = cell_.stage[0].gives;
    if (handed) handed_ = arena.take<F>(handed * p.B * Hp_);
    if (p.P) hidden_ = arena.take<E>(p.B * Hp_);
    for (int i = 1; i < stages_; ++i) operands_[i] = arena.take<E>(p.B * Hp_);
    if (!plan.fuse_input) gates_ = arena.take<F>(chunk_rows * cell_.inputs * Hp_);
    if (kConvertOperands) x_ = arena.take<E>(chunk_rows * p.I);
    for (int i = 0; plan.in_place && i < stages_; ++i)
      hidden_gates_[i] = arena.take<F>(p.B * cell_.stage[i].apart * Hp_);
    if (m_.recurrent_factor)
      for (E*& masked : masked_) masked = arena.take<E>(p.B * Rp_);
    for (int i = 1; i < cell_.states; ++i)
      if (m_.keep[i]) before_[i] = arena.take<F>(p.B * Hp_);
    if (p.program) {
      int vectors = 1;
      for (int i = 0; i < stages_; ++i)
        vectors = most(vectors, gate_vectors(cell_.stage[i], stages_));
      memory_ = ProgramMemory<F>(*p.program, vectors, plan.threads, arena);
      programs_ = arena.take<ProgramGates<E, F>>(stages_);
      for (int i = 0; i < stages_; ++i) bind(i, arena);
    }
    x_rows_ = arena.take<const E*>(chunk_rows);
    out_rows_ = arena.take<F*>(chunk_rows);
  }

  void run(int d, const Team& team) {
    const Steps steps{p_, d == 1};
    const Range rows = row_share(p_, plan_, team);
    Range groups[kMaxStages];
    for (int i = 0; i < stages_; ++i) groups[i] = group_share(groups_[i], plan_, team);
    const Range own = units_of(stages_ - 1, groups[stages_ - 1]);
    ProgramScratch<F> scratch;
    if (p_.program) scratch = ProgramScratch<F>(memory_, team.rank);
    prepare(d, steps, team);
    team.sync();
    for (int64_t s0 = 0; s0 < p_.T; s0 += plan_.forward_steps) {
      const int64_t s1 = least(s0 + plan_.forward_steps, p_.T);
      project_input(d, steps, s0, s1, rows, groups, team);
      for (int64_t s = s0; s < s1; ++s) {
        const Range alive{rows.begin, most(rows.begin, least(rows.end, steps.alive(s)))};
        for (int i = 0; i < stages_; ++i) {
          if (i > 0 && plan_.split == Split::units) team.sync();
          step(i, d, steps, s, (s - s0) * p_.B, alive, groups[i], scratch);
          if (i + 1 < stages_ && m_.recurrent_factor)
            mask_operand(i, d, steps, s, alive, groups[i]);
        }
        if (p_.P) {
          if (plan_.split == Split::units) team.sync();
          project_output(d, steps, s, alive, team);
        }
        if (is_modified_ || wants_states_) end_step(d, steps, s, alive, own, team);
        finish(d, steps, s, alive, own, team);
        if (is_modified_ && s + 1 < p_.T)
          begin_step(d, steps, s + 1, rows, p_.P ? outputs_of(team) : own, own);
        if (plan_.split == Split::units) team.sync();
      }
    }
  }

 private:
  static int64_t depth(int64_t K) { return StagePanels<S, F>::depth(K); }

  // What the tiles of a program's stage need, but for what is another's at each tile.
  void bind(int stage, Arena& arena) {
    if (tiles_.stage[stage] != run_program_tile<E, F>) return;  // it was compiled
    const StageFacts& facts = cell_.stage[stage];
    const StageProgram& program = p_.program->stage[stage];
    const PassKind kind = p_.reserve ? PassKind::forward_saving : PassKind::forward;
    const Pass& pass = program.pass(kind);
    reads_step_inputs_[stage] = reads(pass, Space::step_input);
    BoundOp* const ops = arena.take<BoundOp>(static_cast<int64_t>(pass.ops.size()));
    if (!ops) return;  // it was only measured
    constexpr bool kSame = std::is_same_v<E, F>;
    const bool project = plan_.fuse_input;
    BoundSpaces<F> at(memory_);
    const int64_t vectors = gate_vectors(facts, stages_);
    if (!project) at[Space::late] = {Hp_, cell_.inputs * Hp_};
    if (kSame) at[Space::h].row = Rp_;
    if (kSame) at[Space::result].row = is_last(stage) && !p_.P ? Rp_ : Hp_;
    at[Space::state] = at[Space::handed] = {p_.B * Hp_, Hp_};
    at[Space::weight] = {Hp_, 0};
    if (p_.reserve)
      at[Space::saved] = kConvert ? Strides{kConvertedSlot, facts.saved * kConvertedSlot}
                                  : Strides{Hp_, cell_.saved * Hp_};
    ProgramGates<E, F>& to = programs_[stage] = {};
    to.pass = at.bind(pass, ops, compiled_pass<F>(*p_.program, stage, kind));
    to.late = facts.first_late * Hp_;
    to.reads_h = reads(pass, Space::h);
    to.late_sums = facts.products * memory_.strides().slot;
    ProgramBlock<E, F>* next = to.blocks;
    for (const Block& block : blocks_[stage]) {
      if (!project && !block.products) continue;
      const int count = block.products ? block.products : block.inputs;
      const int partners = block.products && project ? block.inputs : 0;
      const bool mixed = block.products && block.accumulators > block.products;
      const bool apart_only = block.products && !block.inputs;
      next->is_input = !block.products, next->is_apart = apart_only;
      next->first_sum = (apart_only ? block.product - facts.first_apart : block.input) * Hp_;
      next->w = (block.products ? block.product * depth(p_.R()) : block.input * depth(p_.I)) * L;
      next->w_ih = block.input * depth(p_.I) * L;
      next->to =
          (block.products ? block.product : facts.products + block.input - facts.first_late) *
          memory_.strides().slot;
      for (int nv = 1; nv <= vectors; ++nv)
        for (int rows = 0; rows <= tile_rows((count + (mixed && project)) * nv); ++rows)
          next->run[(nv - 1) * (kTileRows + 1) + rows] =
              GateTiles<E, F>::block(rows, count * nv, partners * nv, mixed);
      ++next;
    }
  }
  Plan plan_of_panels() const { return p_.has_panels ? Plan() : plan_; }
  bool is_last(int stage) const { return stage + 1 == stages_; }
  const S* weight(const void* w) const { return static_cast<const S*>(w); }
  S* output(int d, const Steps& steps, int64_t s, int64_t b) const {
    return static_cast<S*>(p_.output) + steps.row(s, b) * p_.directions * p_.R() + d * p_.R();
  }
  S* reserve(int d, const Steps& steps, int64_t s, int64_t b) const {
    return static_cast<S*>(p_.reserve) + (d * p_.rows + steps.row(s, b)) * cell_.saved * Hp_;
  }

  void prepare(int d, const Steps& steps, const Team& team) {
    if (!p_.has_panels) panels_[d].make(p_, plan_, p_.weights[d], team);
    const Range rows = share(p_.B, team.rank, team.size);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      for (E* h : h_) initial_row(p_.hx[0], d, b, p_.R(), Rp_, h);
      for (int i = 1; i < cell_.states; ++i) initial_row(p_.hx[i], d, b, p_.H, Hp_, state(i));
      if (p_.P) fill(hidden_ + b * Hp_, Hp_);
      for (int i = 1; i < stages_; ++i) fill(operands_[i] + b * Hp_, Hp_);
      for (E* masked : masked_)
        if (masked) fill(masked + b * Rp_, Rp_);
    }
    if (is_modified_) begin_step(d, steps, 0, rows, {0, p_.R()}, {0, p_.H});
  }

  F* state(int i) const { return states_ + (i - 1) * p_.B * Hp_; }  // i > 0: not h

  // What step s begins with, for some rows and a thread's columns of h and units of other states:
  // replaced at boundaries, and kept, or multiplied, for later.
  FUSEDRNN_RARE void begin_step(int d, const Steps& steps, int64_t s, Range rows, Range columns,
                                Range units) {
    const int64_t t = steps.t(s);
    E* const h = h_[s % 2];
    for (int64_t b = rows.begin; b < least(rows.end, steps.alive(s)); ++b) {
      const int64_t boundary = p_.boundary(t, b, steps.reverse);
      if (boundary >= 0) {
        replace(m_.reset_states[0], boundary, d, b, columns, h + b * Rp_);
        for (int i = 1; i < cell_.states; ++i)
          replace(m_.reset_states[i], boundary, d, b, units, state(i) + b * Hp_);
      }
      if (m_.recurrent_factor)
        multiply_row<F>(h + b * Rp_, values_of<S>(m_.recurrent_factor, t, d, b), columns,
                        masked_[s % 2] + b * Rp_);
      for (int i = 1; i < cell_.states; ++i)
        if (before_[i])
          convert(before_[i] + b * Hp_ + units.begin, state(i) + b * Hp_ + units.begin,
                  units.size());
    }
  }

  template <class T>
  void replace(const Spread<const void>& by, int64_t t, int d, int64_t b, Range columns, T* row) {
    if (by)
      convert(row + columns.begin, values_of<S>(by, t, d, b) + columns.begin, columns.size());
    else
      fill(row + columns.begin, columns.size());
  }

  // What a stage left for the next one's product, times its factor.
  FUSEDRNN_RARE void mask_operand(int stage, int d, const Steps& steps, int64_t s, Range rows,
                                  Range groups) {
    const Range units = units_of(stage, groups);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      E* const operand = operands_[stage + 1] + b * Hp_;
      multiply_row<F>(operand, values_of<S>(m_.recurrent_factor, steps.t(s), d, b), units, operand);
    }
  }

  // The states after step s: mixed with those before, and stored where all are wanted.
  FUSEDRNN_RARE void end_step(int d, const Steps& steps, int64_t s, Range rows, Range units,
                              const Team& team) {
    const int64_t t = steps.t(s);
    const Range columns = p_.P ? outputs_of(team) : units;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      if (m_.keep[0])
        keep_output<F>(h_[s % 2] + b * Rp_, values_of<S>(m_.keep[0], t, d, b), columns,
                       output(d, steps, s, b), h_[(s + 1) % 2] + b * Rp_);
      for (int i = 1; i < cell_.states; ++i) {
        F* const now = state(i) + b * Hp_;
        if (m_.keep[i])
          keep_row<F>(before_[i] + b * Hp_, values_of<S>(m_.keep[i], t, d, b), units, now);
        if (p_.states[i])
          convert(static_cast<S*>(p_.states[i]) + (steps.row(s, b) * p_.directions + d) * p_.H +
                      units.begin,
                  now + units.begin, units.size());
      }
    }
  }

  template <class T>
  void initial_row(const void* state, int d, int64_t b, int64_t n, int64_t padded, T* to) {
    T* const row = to + b * padded;
    if (state) convert(row, weight(state) + (d * p_.B + b) * n, n);
    fill(row + (state ? n : 0), padded - (state ? n : 0));
  }

  void project_input(int d, const Steps& steps, int64_t s0, int64_t s1, Range rows,
                     const Range (&groups)[kMaxStages], const Team& team) {
    if (kConvertOperands) {
      // When units are split, every thread needs all of x, so the team converts it together, once.
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
    // Lists the thread's own rows of the chunk, one after the other, whatever their strides. Each
    // thread has its own section of the two arrays; when units are split, all would write the same,
    // so one does. A section does not move in a shorter chunk, since another thread may still be in
    // the chunk before.
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
    for (int i = 0; i < stages_; ++i) project_rows(i, d, from, to, count, groups[i]);
  }

  void project_rows(int stage, int d, const E* const* from, F* const* to, int64_t count,
                    Range groups) {
    if (plan_.in_place) return project_in_place(stage, d, from, to, count, groups);
    const StageFacts& facts = cell_.stage[stage];
    const StagePanels<S, F>& panel = panels_[d].stage[stage];
    const Groups& all = groups_[stage];
    for (int64_t group = groups.begin; group < groups.end; ++group)
      for (const Block& block : blocks_[stage]) {
        if (!block.inputs) continue;
        const int64_t unit = all.begin(group) * L, nv = all.size(group);
        LinearTile<E, F> tile;
        tile.segments = {1, p_.I, 0};
        tile.w = panel.w_ih + (unit * facts.inputs + block.input * nv * L) * depth(p_.I);
        tile.bias = panel.bias + block.input * Hp_ + unit;
        tile.column_stride = tile.bias_stride = nv > 1 ? L : Hp_;
        tile.columns = L;
        const Tiles tiles(count, tile_rows(static_cast<int>(block.inputs * nv)));
        for (int64_t i = 0, r = 0; i < tiles.count; r += tiles.size(i++)) {
          for (int64_t j = 0; j < tiles.size(i); ++j) {
            tile.rows[j] = from[r + j];
            tile.out[j] = to[r + j] + (facts.first_input + block.input) * Hp_ + unit;
          }
          linear(p_.rows == 1 ? 0 : tiles.size(i), block.inputs * nv, tile);
        }
      }
  }

  const S* input_row(const Steps& steps, int64_t s, int64_t b) const {
    return static_cast<const S*>(p_.input) + p_.input_offset(steps.t(s), b);
  }

  // The input row as an operand of the product; chunk_row is where the step starts in the chunk.
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
        to[count] = gates_ + ((s - s0) * p_.B + b) * cell_.inputs * Hp_;
      }
    }
    return count;
  }

  // The units in a range of a stage's groups.
  Range units_of(int stage, Range groups) const {
    const Groups& all = groups_[stage];
    return {all.begin(groups.begin) * L, least(all.begin(groups.end) * L, p_.H)};
  }

  void project_in_place(int stage, int d, const E* const* from, F* const* to, int64_t count,
                        Range groups) {
    const StageFacts& facts = cell_.stage[stage];
    const Range units = units_of(stage, groups);
    for (int64_t r = 0; r < count; ++r)
      for (int slot = 0; slot < facts.inputs; ++slot) {
        const int64_t gate = facts.gate_of_input[slot];
        F* const out = to[r] + (facts.first_input + slot) * Hp_ + units.begin;
        convert(out, panels_[d].stage[stage].bias + slot * Hp_ + units.begin, units.size());
        fill(out + units.size(), round_up(units.size(), L) - units.size());
        add_dots(weight(p_.weights[d].w_ih) + (gate * p_.H + units.begin) * p_.I, p_.I,
                 units.size(), from[r], p_.I, out);
      }
  }

  // Adds the recurrent product, with the weights in place, to the gates. Products without an input
  // go to hidden_gates (`apart`) instead.
  void multiply_in_place(int stage, int d, const E* operand, F* gates, F* apart, Range groups) {
    const StageFacts& facts = cell_.stage[stage];
    const Range units = units_of(stage, groups);
    for (int slot = 0; slot < facts.products; ++slot) {
      const int input = facts.input_of_product[slot];
      const int64_t gate = facts.gate_of_product[slot], hidden = (slot - facts.first_apart) * Hp_;
      F* const out = (input < 0 ? apart + hidden : gates + input * Hp_) + units.begin;
      if (input < 0)
        convert(out, panels_[d].stage[stage].hidden_bias + hidden + units.begin,
                round_up(units.size(), L));
      add_dots(weight(p_.weights[d].w_hh) + (gate * p_.H + units.begin) * p_.R(), p_.R(),
               units.size(), operand, p_.R(), out);
    }
  }

  // One stage of a step. Both this and `finish` are inlined: a step of a few rows takes less than a
  // microsecond, and most of what they do first is the same at every step.
  FUSEDRNN_INLINE void step(int stage, int d, const Steps& steps, int64_t s, int64_t chunk_row,
                            Range rows, Range groups, ProgramScratch<F>& scratch) {
    const StageFacts& facts = cell_.stage[stage];
    const bool is_first = stage == 0, is_last = this->is_last(stage);
    const int vectors = gate_vectors(facts, stages_);
    const Groups& all = groups_[stage];
    const StagePanels<S, F>& panel = panels_[d].stage[stage];
    const auto run_tile = tiles_.stage[stage];
    const E* const h_read = h_[s % 2];
    const E* const operand = !is_first ? operands_[stage] : masked_[0] ? masked_[s % 2] : h_read;
    const int64_t operand_row = is_first ? Rp_ : Hp_;
    E* const result = !is_last ? operands_[stage + 1] : p_.P ? hidden_ : h_[(s + 1) % 2];
    const int64_t result_row = !is_last || p_.P ? Hp_ : Rp_, gates_row = cell_.inputs * Hp_;
    F* const gates = gates_ + chunk_row * gates_row + facts.first_input * Hp_;
    F* const apart = hidden_gates_[stage];
    const int64_t apart_row = facts.apart * Hp_;
    if (plan_.in_place)
      for (int64_t b = rows.begin; b < rows.end; ++b)
        multiply_in_place(stage, d, operand + b * operand_row, gates + b * gates_row,
                          apart + b * apart_row, groups);

    F converted[kConvert ? kMostConverted : 1];
    const bool project = plan_.fuse_input;
    GateTile<E, F> tile;
    tile.program = p_.program ? &programs_[stage] : nullptr, tile.scratch = &scratch;
    tile.K = plan_.in_place ? 0 : p_.R();
    tile.I = p_.I;
    tile.hidden_bias_row = plan_.in_place ? apart_row : 0, tile.hidden_bias_slot = Hp_;
    tile.gates_row = project ? 0 : gates_row;
    tile.gates_slot = Hp_, tile.h_prev_row = Rp_, tile.Hp = Hp_;
    tile.state_row = Hp_, tile.state_slot = tile.handed_slot = p_.B * Hp_;
    tile.result_row = result_row, tile.y_row = p_.directions * p_.R();
    tile.save_row = kConvert ? facts.saved * kConvertedSlot : cell_.saved * Hp_;
    tile.save_slot = kConvert ? kConvertedSlot : Hp_;
    const int width = widest_[stage] * vectors;
    const Tiles tiles(rows.size(), tile_rows(width));
    const int64_t unit_weights = facts.products * depth(p_.R());
    // The weights of all stages pass through the cache in a step.
    const int64_t step_weights = cell_.products * depth(p_.R());
    const bool far = groups.size() * vectors * L * step_weights * sizeof(E) > Ahead::kNear;
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
      tile.w_ih = panel.w_ih + unit * facts.inputs * depth(p_.I);
      if (project) tile.gates = panel.bias + unit;
      for (int64_t j = 0, b = rows.begin; j < tiles.count; b += tiles.size(j++)) {
        const int64_t R = tiles.size(j);
        for (int64_t r = 0; r < R; ++r) tile.rows[r] = operand + (b + r) * operand_row;
        tile.ahead = ahead.of_tile(j);
        if (project)
          for (int64_t r = 0; r < R; ++r) tile.inputs[r] = x_row(steps, s, chunk_row, b + r);
        else
          tile.gates = gates + b * gates_row + unit;
        tile.hidden_bias =
            (tile.hidden_bias_row ? apart + b * apart_row : panel.hidden_bias) + unit;
        tile.h_prev = h_read + b * Rp_ + unit;
        tile.states = states_ + b * Hp_ + unit;
        tile.handed = handed_ + b * Hp_ + unit;
        tile.unit_weights = panel.w_unit + unit;
        tile.result = result + b * result_row + unit;
        tile.y = nullptr, tile.save = nullptr;
        if constexpr (!kConvertOperands)
          if (is_last && !p_.P) tile.y = output(d, steps, s, b) + unit;
        if constexpr (!kConvert) {
          if (p_.reserve) tile.save = reserve(d, steps, s, b) + facts.first_saved * Hp_ + unit;
        } else {
          if (p_.reserve) tile.save = converted;
        }
        if (reads_step_inputs_[stage])
          load_step_inputs<S>(m_.step_inputs, cell_.step_inputs, steps.t(s), d, b, R,
                              {unit, unit + (nv - 1) * L + tile.units}, scratch);
        run_tile(plan_.fuse_input, p_.B == 1 ? 0 : R, nv, tile);
        if (is_last && group + 1 == all.count) clear_padding(d, steps, s, b, R);
        if constexpr (kConvert) convert_tile(stage, d, steps, s, b, R, unit, nv, tile);
      }
    }
  }

  // The reserve is a tensor, so every call must give it the same values, even beyond the last
  // vector.
  void clear_padding(int d, const Steps& steps, int64_t s, int64_t b, int64_t R) {
    const int64_t first = groups_[stages_ - 1].vectors * L;
    if (!p_.reserve || first == Hp_) return;
    for (int64_t r = 0; r < R; ++r)
      for (int g = 0; g < cell_.saved; ++g)
        fill(reserve(d, steps, s, b + r) + g * Hp_ + first, Hp_ - first);
  }

  // In half precision: converts a tile's outputs and reserve from the compute type to the storage
  // type. h is rounded, too, so that a sequence cut into two calls gives the same numbers as one
  // call. What a stage leaves for the next one is not h, and is not rounded.
  void convert_tile(int stage, int d, const Steps& steps, int64_t s, int64_t b, int64_t R,
                    int64_t unit, int64_t nv, const GateTile<E, F>& tile) {
    const StageFacts& facts = cell_.stage[stage];
    const int64_t units = (nv - 1) * L + tile.units;
    for (int64_t r = 0; r < R; ++r) {
      if (kConvertOperands && !p_.P && is_last(stage)) {
        S* const y = output(d, steps, s, b + r) + unit;
        convert_inline(y, tile.result + r * tile.result_row, units);
        convert_inline(tile.result + r * tile.result_row, y, units);
      }
      if (p_.reserve)
        for (int g = 0; g < facts.saved; ++g)
          convert_inline(reserve(d, steps, s, b + r) + (facts.first_saved + g) * Hp_ + unit,
                         tile.save + r * tile.save_row + g * tile.save_slot, nv * L);
    }
  }

  // With a projection: h = W_hr times what the last stage left.
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
      tile.w = panels_[d].stage[stages_ - 1].w_hr + column * depth(p_.H);
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

  // Stores the states of rows whose last step this was.
  FUSEDRNN_INLINE void finish(int d, const Steps& steps, int64_t s, Range rows, Range units,
                              const Team& team) {
    const auto put = [&](int state, int64_t b, const auto* from, Range mine) {
      S* const to = static_cast<S*>(p_.hn[state]) + (d * p_.B + b) * p_.width(state);
      if (mine.begin < mine.end) convert(to + mine.begin, from + mine.begin, mine.size());
    };
    for (int64_t b = most(rows.begin, steps.alive_after(s)); b < rows.end; ++b) {
      put(0, b, h_[(s + 1) % 2] + b * Rp_, p_.P ? outputs_of(team) : units);
      for (int i = 1; i < cell_.states; ++i) put(i, b, state(i) + b * Hp_, units);
    }
  }

  // The projected values that a thread computes.
  Range outputs_of(const Team& team) const {
    const Range mine = group_share(outputs_, plan_, team);
    return {outputs_.begin(mine.begin) * L, least(outputs_.begin(mine.end) * L, p_.P)};
  }

  // The reserve of a tile before it is converted, [row][saved][vectors of a group][lanes].
  static constexpr int64_t kConvertedSlot = kGroup * kLanes<F>;
  static constexpr int64_t kMostConverted = kMaxRows * kMostSaved * kConvertedSlot;

  const Problem& p_;
  const Plan& plan_;
  const Facts& cell_;
  const int stages_;
  const Modifiers& m_;
  const bool is_modified_, wants_states_;
  const int64_t Hp_, Rp_;
  Groups groups_[kMaxStages];  // of units, by stage
  Blocks blocks_[kMaxStages];
  bool reads_step_inputs_[kMaxStages] = {};
  ProgramGates<E, F>* programs_ = nullptr;  // by stage
  ProgramMemory<F> memory_;
  int widest_[kMaxStages];  // accumulators of a tile for each vector of units
  const Groups outputs_;    // of projected values
  const GateTiles<E, F> tiles_ = GateTiles<E, F>::of(p_);
  CellPanels<S, F> panels_[kMaxDirections];
  E *h_[2], *hidden_ = nullptr, *operands_[kMaxStages] = {};
  E *x_ = nullptr, *masked_[2] = {};
  F *before_[kMaxStates] = {}, *hidden_gates_[kMaxStages] = {};
  F *states_ = nullptr, *handed_ = nullptr, *gates_ = nullptr;
  const E** x_rows_;
  F** out_rows_;
};

template <Dtype dtype>
int64_t forward(const Problem& p, const Plan& plan, ParallelFor parallel_for, void* scratch) {
  using Walk = ForwardWalk<StorageOf<dtype>, ComputeOf<dtype>>;
  Arena arena(scratch);
  Walk first(p, plan, arena);
  Walk second = plan.direction_teams > 1 ? Walk(p, plan, arena) : first;
  if (scratch)
    run_directions(p, plan, parallel_for,
                   [&](int d, const Team& team) { (d == 0 ? first : second).run(d, team); });
  return arena.bytes();
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
