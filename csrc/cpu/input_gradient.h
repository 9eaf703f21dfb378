// dx = dgates W_ih, for the rows of a chunk.
#pragma once

#include "backward_chunk.h"
#include "in_place.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

template <class S, class F>
class InputGradient {
  using Walked = Chunk<S, F>;
  using E = typename Walked::E;
  static constexpr int64_t L = kLanes<F>;
  static constexpr int64_t kMostRows = 8;

 public:
  // The gradient of the reverse direction goes to its own array, since both directions may run at
  // the same time. The caller adds it to the other's.
  InputGradient(const BackwardProblem& p, bool in_place, S* reverse, Arena& arena)
      : p_(p),
        cell_(p.facts()),
        in_place_(in_place),
        reverse_(reverse),
        columns_(div_up(p.I, L), div_up(div_up(p.I, L), kGroup)) {
    if (p.grad_input && !in_place)
      w_ih_ = arena.take<E>(columns_.vectors * L * cell_.inputs * Walked::depth(p.H));
  }

  void prepare(int d, const Team& team) const {
    if (!w_ih_) return;
    make_column_panels(Walked::at(p_.weights[d].w_ih, 0), p_.H, p_.I, cell_.inputs,
                       cell_.gate_of_input, columns_, share(columns_.count, team.rank, team.size),
                       w_ih_);
  }

  // Computes a thread's share of the chunk's rows, those of steps [s0, s1).
  void run(const Walked& chunk, int d, const Steps& steps, int64_t s0, int64_t s1,
           const Team& team) const {
    if (!p_.grad_input) return;
    S* const grad_input = d == 0 ? Walked::at(p_.grad_input, 0) : reverse_;
    if (in_place_) return run_in_place(chunk, d, steps, grad_input, team);
    F out[kMostRows][kGroup * L];
    for (int64_t group = 0; group < columns_.count; ++group) {
      const int64_t column = columns_.begin(group) * L, nv = columns_.size(group);
      const int64_t valid = least(nv * L, p_.I - column);
      LinearTile<E, F> tile;
      tile.segments = {cell_.inputs, p_.H, chunk.Hp};
      tile.w = w_ih_ + column * cell_.inputs * Walked::depth(p_.H);
      tile.column_stride = L;
      tile.columns = L;
      const int64_t widest = tile_rows(static_cast<int>(nv));
      S* to[kMostRows];
      int64_t filled = 0;
      const auto flush = [&] {
        if (!filled) return;
        linear(p_.rows == 1 ? 0 : filled, nv, tile);
        for (int64_t r = 0; r < filled; ++r) convert(to[r], out[r], valid);
        filled = 0;
      };
      Walked::each_row(steps, s0, s1, team, [&](int64_t s, int64_t b, int64_t) {
        tile.rows[filled] = gradients(chunk, s - s0, b);
        tile.out[filled] = out[filled];
        to[filled] = grad_input + steps.row(s, b) * p_.I + column;
        if (++filled == widest) flush();
      });
      flush();
    }
  }

 private:
  const E* gradients(const Walked& chunk, int64_t j, int64_t b) const {
    return chunk.dgates(j, b) + cell_.first_input_grad * chunk.Hp;
  }

  void run_in_place(const Walked& chunk, int d, const Steps& steps, S* grad_input,
                    const Team& team) const {
    const Range groups = share(columns_.count, team.rank, team.size);
    F out[kGroup * L];
    for (int64_t b = 0; b < p_.B; ++b)
      for (int64_t group = groups.begin; group < groups.end; ++group) {
        const int64_t column = columns_.begin(group) * L;
        const int64_t valid = least(columns_.size(group) * L, p_.I - column);
        row_times_weights(gradients(chunk, 0, b), cell_.inputs, chunk.Hp, cell_.gate_of_input,
                          Walked::at(p_.weights[d].w_ih, 0), p_.H, p_.I, column, valid, out);
        convert(grad_input + steps.row(0, b) * p_.I + column, out, valid);
      }
  }

  const BackwardProblem& p_;
  const Facts& cell_;
  const bool in_place_;
  S* const reverse_;
  const Groups columns_;  // of input values
  E* w_ih_ = nullptr;
};

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
