// Gradients of the weights of one direction, added up chunk by chunk:
//
//   dW_ih += dgates^T x            db_ih, db_hh, dw_unit += sums of dgates over rows
//   dW_hh += dgates^T h_prev       (the first stage's rows; the others' += dgates^T operand)
//   dW_hr += dr^T h before its projection
//
// The sums of a chunk are added to those of the chunks before. This also has smaller rounding
// errors than one long sum.
#pragma once

#include "backward_chunk.h"
#include "outer.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

template <class S, class F>
class GradientsOfWeights {
  using Walked = Chunk<S, F>;
  using E = typename Walked::E;
  static constexpr bool kConvert = Walked::kConvert;
  static constexpr int64_t kPair = Walked::kPair;

 public:
  // Whether the gradients of a role are asked for in any direction.
  static bool wants(const BackwardProblem& p, void* WeightGradients::* role) {
    bool wanted = false;
    for (int d = 0; d < p.directions; ++d) wanted |= p.grad_weights[d].*role != nullptr;
    return wanted;
  }

  GradientsOfWeights(const BackwardProblem& p, const Plan& plan, Arena& arena)
      : p_(p),
        cell_(p.facts()),
        blocks_(div_up(p.H, kBlock)),
        projected_blocks_(div_up(p.P, kBlock)) {
    const int64_t K = Walked::depth(plan.backward_steps * p.B);
    const int64_t inputs = p.input_rows(), products = p.hidden_rows();
    const bool w_ih = wants(p, &WeightGradients::w_ih), w_hh = wants(p, &WeightGradients::w_hh);
    const bool w_hr = wants(p, &WeightGradients::w_hr), w_unit = wants(p, &WeightGradients::w_unit);
    const bool biases = wants(p, &WeightGradients::b_ih) || wants(p, &WeightGradients::b_hh);
    if (w_ih || w_hh || biases || w_unit) a_ = arena.take<E>(cell_.grads * blocks_ * kBlock * K);
    if (w_ih) x_.allocate(arena, p.I, K);
    for (int i = 0; w_hh && i < cell_.stages; ++i) operands_[i].allocate(arena, p.R(), K);
    if (w_hr) a_projected_ = arena.take<E>(projected_blocks_ * kBlock * K);
    if (w_hr) hidden_.allocate(arena, p.H, K);
    if (!kConvert) return;
    if (w_ih) total_.w_ih = arena.take<F>(inputs * p.I);
    if (w_hh) total_.w_hh = arena.take<F>(products * p.R());
    if (w_hr) total_.w_hr = arena.take<F>(p.P * p.H);
    if (biases) total_.b_ih = arena.take<F>(inputs), total_.b_hh = arena.take<F>(products);
    if (w_unit) total_.w_unit = arena.take<F>(cell_.unit_weights * p.H);
  }

  // Gathers a thread's share of what the gradients are multiplied by, for the chunk's rows. Returns
  // the depth of the product. The team must meet before it uses what was gathered.
  int64_t gather(const Walked& chunk, const Steps& steps, int64_t s0, int64_t s1,
                 const Team& team) {
    const int64_t total = Walked::rows_of(steps, s0, s1), K = Walked::depth(total);
    struct Row {
      const E *x, *operand[kMaxStages], *hidden;
    } first{};
    const auto put = [&](const Row& a, const Row& b, int64_t k) {
      if (x_.data) x_.put(a.x, b.x, k, K);
      for (int i = 0; i < cell_.stages; ++i)
        if (operands_[i].data) operands_[i].put(a.operand[i], b.operand[i], k, K);
      if (hidden_.data) hidden_.put(a.hidden, b.hidden, k, K);
    };
    Walked::each_row(steps, s0, s1, team, [&](int64_t s, int64_t b, int64_t k) {
      const int64_t j = s - s0;
      Row row;
      row.x = chunk.x(steps, s, j, b);
      row.operand[0] = chunk.operand(j, b);
      for (int i = 1; i < cell_.stages; ++i) row.operand[i] = chunk.restored(i - 1, j, b);
      row.hidden = chunk.restored(cell_.stages - 1, j, b);
      if (kPair == 1)
        put(row, Row{}, k);
      else if (k % kPair)
        put(first, row, k - 1);
      else if (k + 1 == total)
        put(row, Row{}, k);
      else
        first = row;
    });
    return K;
  }

  // Adds a thread's share of the chunk's sums; `first`: there are no sums to add them to yet.
  void add(const Walked& chunk, int d, const Steps& steps, int64_t s0, int64_t s1, int64_t K,
           bool first, const Team& team) const {
    const ByRole<F> to = totals(d);
    if (to.w_ih || to.w_hh || to.b_ih || to.b_hh || to.w_unit) {
      const Range mine = share(cell_.grads * blocks_, team.rank, team.size);
      for (int64_t i = mine.begin; i < mine.end; ++i) {
        const int64_t slot = i / blocks_, unit = i % blocks_ * kBlock;
        E* const a = a_ + i * kBlock * K;
        gather_block(
            steps, s0, s1, least<int64_t>(kBlock, p_.H - unit),
            [&](int64_t j, int64_t b) { return chunk.dgates(j, b) + slot * chunk.Hp + unit; }, a);
        add_sums(a, K, static_cast<int>(slot), unit, to, first);
      }
      multiply(x_, to.w_ih, cell_.first_input_grad, cell_.inputs, cell_.gate_of_input, mine, K,
               first);
      for (int i = 0; i < cell_.stages; ++i) {
        const StageFacts& stage = cell_.stage[i];
        multiply(operands_[i], to.w_hh, stage.first_product, stage.products, stage.gate_of_product,
                 mine, K, first);
      }
    }
    if (!to.w_hr) return;
    const Range blocks = share(projected_blocks_, team.rank, team.size);
    for (int64_t i = blocks.begin; i < blocks.end; ++i) {
      const int64_t unit = i * kBlock, valid = least<int64_t>(kBlock, p_.P - unit);
      E* const a = a_projected_ + i * kBlock * K;
      gather_block(
          steps, s0, s1, valid, [&](int64_t j, int64_t b) { return chunk.dr(j, b) + unit; }, a);
      for (int64_t group = 0; group < hidden_.groups.count; ++group)
        hidden_.multiply_block(a, K, to.w_hr + unit * p_.H, valid, !first, group);
    }
  }

  // In half precision: converts the sums from the compute type, into the gradients.
  void store(int d, const Team& team) const {
    if (!kConvert) return;
    team.sync();
    const WeightGradients& to = p_.grad_weights[d];
    const auto put = [&](void* gradient, const F* from, int64_t n) {
      const Range mine = share(n, team.rank, team.size);
      if (gradient) convert(Walked::at(gradient, mine.begin), from + mine.begin, mine.size());
    };
    put(to.w_ih, total_.w_ih, p_.input_rows() * p_.I);
    put(to.w_hh, total_.w_hh, p_.hidden_rows() * p_.R());
    put(to.w_hr, total_.w_hr, p_.P * p_.H);
    put(to.b_ih, total_.b_ih, p_.input_rows());
    put(to.b_hh, total_.b_hh, p_.hidden_rows());
    put(to.w_unit, total_.w_unit, cell_.unit_weights * p_.H);
  }

 private:
  // Where sums are added up: in the gradients themselves if they are in the compute type.
  ByRole<F> totals(int d) const {
    const WeightGradients& to = p_.grad_weights[d];
    const auto place = [](F* total, void* direct) -> F* {
      if constexpr (kConvert)
        return direct ? total : nullptr;
      else
        return static_cast<F*>(direct);
    };
    return {place(total_.w_ih, to.w_ih), place(total_.w_hh, to.w_hh),
            place(total_.b_ih, to.b_ih), place(total_.b_hh, to.b_hh),
            place(total_.w_hr, to.w_hr), place(total_.w_unit, to.w_unit)};
  }

  // What the gradient in a slot belongs to: a gate of W_ih (and b_ih), a gate of W_hh (and b_hh), a
  // unit weight. -1 if it belongs to none.
  int input_row(int slot) const {
    const int input = slot - cell_.first_input_grad;
    return input >= 0 && input < cell_.inputs ? cell_.gate_of_input[input] : -1;
  }
  int hidden_row(int slot) const {
    for (int i = 0; i < cell_.stages; ++i) {
      const int product = slot - cell_.stage[i].first_product;
      if (product >= 0 && product < cell_.stage[i].products)
        return cell_.stage[i].gate_of_product[product];
    }
    return -1;
  }
  int unit_row(int slot) const {
    return slot >= cell_.first_unit_grad ? slot - cell_.first_unit_grad : -1;
  }

  // out[gate of slot] (+)= dgates^T panels, for `slots` of them from `begin` on, and a thread's
  // range of blocks.
  void multiply(const OuterPanels<E, F>& panels, F* out, int64_t begin, int64_t slots,
                const signed char* gate_of, Range blocks, int64_t K, bool first) const {
    for (int64_t group = 0; out && group < panels.groups.count; ++group)
      for (int64_t i = blocks.begin; i < blocks.end; ++i) {
        const int64_t slot = i / blocks_ - begin, unit = i % blocks_ * kBlock;
        if (slot < 0 || slot >= slots) continue;
        const int64_t gate = gate_of[slot];
        panels.multiply_block(a_ + i * kBlock * K, K, out + (gate * p_.H + unit) * panels.columns,
                              least<int64_t>(kBlock, p_.H - unit), !first, group);
      }
  }

  // Gathers a block: kBlock values of each of the chunk's rows, with zeros beyond `valid`, as
  // [k][kBlock] (or [k / 2][kBlock][2]).
  template <class RowOf>
  void gather_block(const Steps& steps, int64_t s0, int64_t s1, int64_t valid, RowOf row_of,
                    E* to) const {
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

  // Adds the sums of a block's gradients over the chunk's rows.
  void add_sums(const E* a, int64_t K, int slot, int64_t unit, const ByRole<F>& to,
                bool first) const {
    // 32 rows at a time, and then these sums: one long chain would round too often.
    constexpr int64_t kRows = 32;
    F sum[kBlock] = {};
    for (int64_t k0 = 0; k0 < K; k0 += kRows) {
      F partial[kBlock] = {};
      for (int64_t k = k0; k < least(k0 + kRows, K); k += kPair) add_block(partial, a + k * kBlock);
      for (int r = 0; r < kBlock; ++r) sum[r] += partial[r];
    }
    const auto put = [&](F* out, int row) {
      if (!out || row < 0) return;
      F* const place = out + row * p_.H + unit;
      for (int64_t r = 0; r < least<int64_t>(kBlock, p_.H - unit); ++r)
        place[r] = first ? sum[r] : place[r] + sum[r];
    };
    put(to.b_ih, input_row(slot));
    put(to.b_hh, hidden_row(slot));
    put(to.w_unit, unit_row(slot));
  }

  const BackwardProblem& p_;
  const Facts& cell_;
  const int64_t blocks_, projected_blocks_;
  E *a_ = nullptr, *a_projected_ = nullptr;  // blocks of dgates, and of the gradients of h
  OuterPanels<E, F> x_, operands_[kMaxStages], hidden_;
  ByRole<F> total_;
};

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
