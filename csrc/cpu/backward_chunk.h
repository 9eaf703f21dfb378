// What backward keeps for a chunk of steps: the gradients of the gates, and what they are
// multiplied by once the chunk has been walked.
//
//   dgates     [steps + 1][B][grad slot][Hp]   entry `steps` holds the step after the chunk
//   h_prev     [steps + 1][B][Rp]              entry j + 1 is also h of step j
//   x          [steps][B][I]                   only if operands are not of the storage type
//   restored   [steps][B][Hp]                  a stage's result in forward, computed again: the
//                                              next stage's operand, or h before its projection
//   dr         [steps][B][Rp]                  with a projection: the gradient of h
//   masked     [steps][B][Rp]                  h_prev with its recurrent factor
//   h          [steps][B][Rp]                  if h_prev may be replaced, and the cell needs h
//   dy, saved  [steps][B]...                   only if the storage type is not the compute type
#pragma once

#include "modifiers.h"
#include "panel.h"
#include "walk.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

template <class S, class F>
class Chunk {
 public:
  using E = typename OperandOf<S>::type;
  static constexpr bool kConvert = !std::is_same_v<S, F>;          // from storage to compute type
  static constexpr bool kConvertOperands = !std::is_same_v<S, E>;  // and to that of operands
  static constexpr int64_t kPair = kTogether<E>;

  const int64_t Hp, Rp, grad_row;

  Chunk(const BackwardProblem& p, const Plan& plan, bool wants_operands, Arena& arena)
      : Hp(p.Hp()),
        Rp(round_up(p.R(), kHiddenPadding)),
        grad_row(p.facts().grads * Hp),
        p_(p),
        saved_row_(p.facts().saved * Hp) {
    const Facts& cell = p.facts();
    const int64_t steps = plan.backward_steps, rows = steps * p.B;
    dgates_ = arena.take<E>((steps + 1) * p.B * grad_row);
    h_prev_ = arena.take<E>((steps + 1) * p.B * Rp);
    if (kConvertOperands) x_ = arena.take<E>(rows * p.I);
    if (kConvert) {
      dy_ = arena.take<F>(rows * p.R());
      saved_ = arena.take<F>(rows * saved_row_);
    }
    if (p.P) dr_ = arena.take<E>(rows * Rp);
    for (int i = 0; i < cell.stages; ++i)
      if (i + 1 < cell.stages ? wants_operands : p.P > 0) restored_[i] = arena.take<E>(rows * Hp);
    if (p.modifiers.recurrent_factor && wants_operands) masked_ = arena.take<E>(rows * Rp);
    if (p.modifiers.reset && cell.last().backward_needs == Needs::h) h_ = arena.take<E>(rows * Rp);
  }

  E* dgates(int64_t j, int64_t b) const { return dgates_ + (j * p_.B + b) * grad_row; }
  E* h_prev(int64_t j, int64_t b) const { return h_prev_ + (j * p_.B + b) * Rp; }
  E* h(int64_t j, int64_t b) const { return h_ ? h_ + (j * p_.B + b) * Rp : h_prev(j + 1, b); }
  // What W_hh was multiplied by.
  E* operand(int64_t j, int64_t b) const {
    return masked_ ? masked_ + (j * p_.B + b) * Rp : h_prev(j, b);
  }
  E* dr(int64_t j, int64_t b) const { return dr_ + (j * p_.B + b) * Rp; }
  // Null if not wanted.
  E* restored(int stage, int64_t j, int64_t b) const {
    return restored_[stage] ? restored_[stage] + (j * p_.B + b) * Hp : nullptr;
  }
  const E* x(const Steps& steps, int64_t s, int64_t j, int64_t b) const {
    if constexpr (kConvertOperands)
      return x_ + (j * p_.B + b) * p_.I;
    else
      return at(p_.input, p_.input_offset(steps.t(s), b));
  }

  // Rows of the batch, `stride` apart.
  struct Located {
    const F* first;
    int64_t stride;
  };
  Located dy(int d, const Steps& steps, int64_t s, int64_t j, int64_t b) const {
    if (!p_.grad_output) return {nullptr, 0};
    if constexpr (kConvert)
      return {dy_ + (j * p_.B + b) * p_.R(), p_.R()};
    else
      return {at(p_.grad_output, output_offset(d, steps, s, b)), p_.directions * p_.R()};
  }
  Located saved(int d, const Steps& steps, int64_t s, int64_t j, int64_t b) const {
    if (!saved_row_) return {nullptr, 0};
    if constexpr (kConvert)
      return {saved_ + (j * p_.B + b) * saved_row_, saved_row_};
    else
      return {at(p_.reserve, reserve_offset(d, steps, s, b)), saved_row_};
  }

  // Gathers h before each step of the chunk (and after the last one): that of the step before, or
  // hx. Also converts everything that has to be converted.
  void gather(int d, const Steps& steps, int64_t s0, int64_t s1, const Team& team) const {
    const Range rows = share(p_.B, team.rank, team.size);
    for (int64_t s = s0; s <= s1; ++s) {
      const int64_t before = s > 0 ? steps.alive(s - 1) : 0;
      for (int64_t b = rows.begin; b < rows.end; ++b) {
        E* const to = h_prev(s - s0, b);
        const int64_t boundary = s < p_.T ? p_.boundary(steps.t(s), b, steps.reverse) : -1;
        if (boundary >= 0)
          load_replaced(boundary, d, b, to);
        else if (b < before)
          load_row(p_.output, output_offset(d, steps, s - 1, b), p_.R(), Rp, to);
        else
          load_row(p_.hx[0], (d * p_.B + b) * p_.R(), p_.R(), Rp, to);
      }
    }
    if (masked_ || h_) gather_modified(d, steps, s0, s1, rows);
    if (!kConvert) return;
    for (int64_t s = s0; s < s1; ++s) {
      for (int64_t b = rows.begin; b < least(rows.end, steps.alive(s)); ++b) {
        const int64_t k = (s - s0) * p_.B + b;
        if (kConvertOperands)
          convert(x_ + k * p_.I, at(p_.input, p_.input_offset(steps.t(s), b)), p_.I);
        if (p_.grad_output)
          convert(dy_ + k * p_.R(), at(p_.grad_output, output_offset(d, steps, s, b)), p_.R());
        if (saved_row_)
          convert(saved_ + k * saved_row_, at(p_.reserve, reserve_offset(d, steps, s, b)),
                  saved_row_);
      }
    }
  }

  // Keeps the dgates of the chunk's first step: it is the step after the next chunk to be walked,
  // which has `length` steps.
  void hand_over(int64_t length, const Team& team) const {
    team.sync();
    const Range rows = share(p_.B, team.rank, team.size);
    for (int64_t b = rows.begin; b < rows.end; ++b)
      __builtin_memcpy(dgates(length, b), dgates(0, b), grad_row * sizeof(E));
  }

  static int64_t rows_of(const Steps& steps, int64_t s0, int64_t s1) {
    int64_t total = 0;
    for (int64_t s = s0; s < s1; ++s) total += steps.alive(s);
    return total;
  }

  // Calls visit(s, b, k) for a thread's share of the chunk's rows. k counts all rows of the chunk;
  // each share begins at a multiple of kPair.
  template <class Visit>
  static void each_row(const Steps& steps, int64_t s0, int64_t s1, const Team& team, Visit visit) {
    const Range mine = share(div_up(rows_of(steps, s0, s1), kPair), team.rank, team.size);
    int64_t k = 0;
    for (int64_t s = s0; s < s1 && k < mine.end * kPair; ++s) {
      const int64_t n = steps.alive(s), first = most<int64_t>(mine.begin * kPair - k, 0);
      for (int64_t b = first; b < least(n, mine.end * kPair - k); ++b) visit(s, b, k + b);
      k += n;
    }
  }

  // Loads `n` values and zeros after them; only zeros if there are no values.
  template <class T>
  static void load_row(const void* from, int64_t offset, int64_t n, int64_t padded, T* to) {
    if (from) convert(to, at(from, offset), n);
    for (int64_t i = from ? n : 0; i < padded; ++i) to[i] = T{};
  }

  static const S* at(const void* p, int64_t offset) { return static_cast<const S*>(p) + offset; }
  static S* at(void* p, int64_t offset) { return static_cast<S*>(p) + offset; }
  static int64_t depth(int64_t K) { return round_up(K, kPair); }  // of a panel

 private:
  void load_replaced(int64_t boundary, int d, int64_t b, E* to) const {
    const Spread<const void>& by = p_.modifiers.reset_states[0];
    load_row(by.data, by.at(boundary, d, b), p_.R(), Rp, to);
  }

  FUSEDRNN_RARE void gather_modified(int d, const Steps& steps, int64_t s0, int64_t s1,
                                     Range rows) const {
    const Spread<const void>& factor = p_.modifiers.recurrent_factor;
    for (int64_t s = s0; s < s1; ++s)
      for (int64_t b = rows.begin; b < least(rows.end, steps.alive(s)); ++b) {
        const int64_t j = s - s0;
        if (masked_)
          multiply_row<F>(h_prev(j, b), values_of<S>(factor, steps.t(s), d, b), {0, p_.R()},
                          operand(j, b));
        if (masked_)
          for (int64_t u = p_.R(); u < Rp; ++u) operand(j, b)[u] = E{};
        if (h_) load_row(p_.output, output_offset(d, steps, s, b), p_.R(), Rp, h(j, b));
      }
  }

  int64_t output_offset(int d, const Steps& steps, int64_t s, int64_t b) const {
    return (steps.row(s, b) * p_.directions + d) * p_.R();
  }
  int64_t reserve_offset(int d, const Steps& steps, int64_t s, int64_t b) const {
    return (d * p_.rows + steps.row(s, b)) * saved_row_;
  }

  const BackwardProblem& p_;
  const int64_t saved_row_;  // of one row of the batch: zero for a cell that saves nothing
  E *dgates_, *h_prev_, *x_ = nullptr, *dr_ = nullptr, *restored_[kMaxStages] = {};
  E *masked_ = nullptr, *h_ = nullptr;
  F *dy_ = nullptr, *saved_ = nullptr;
};

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
