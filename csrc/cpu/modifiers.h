// What modifiers (layer/problem.h) do to the rows of a walk: each function is for some columns of
// the row of one sequence. S is the storage type, in which modifiers are; T and E are whatever the
// walk keeps the row in.
#pragma once

#include "spaces.h"

// Out of the way of what every call does.
#define FUSEDRNN_RARE __attribute__((noinline, cold))

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

// The values of step t, direction d and sequence b, from their first column on.
template <class S>
const S* values_of(const Spread<const void>& spread, int64_t t, int64_t d, int64_t b) {
  return static_cast<const S*>(spread.data) + spread.at(t, d, b);
}

// Calls f(u, n) for each vector of the columns: it begins at u and has n valid values or more.
template <class F, class Function>
FUSEDRNN_INLINE void for_vectors(Range columns, const Function& f) {
  for (int64_t u = columns.begin; u < columns.end; u += kLanes<F>) f(u, columns.end - u);
}

// to = from * factor
template <class F, class S, class T>
void multiply_row(const T* from, const S* factor, Range columns, T* to) {
  for_vectors<F>(columns, [&](int64_t u, int64_t n) {
    store_n(to + u, load_n(from + u, n) * load_n(factor + u, n), n);
  });
}

// now = keep * before + (1 - keep) * now. Where keep is 0 or 1, that is exactly one of the two.
template <class F, class S, class T>
void keep_row(const T* before, const S* keep, Range columns, T* now) {
  for_vectors<F>(columns, [&](int64_t u, int64_t n) {
    const Vec<F> share = load_n(keep + u, n);
    store_n(now + u, share * load_n(before + u, n) + (1 - share) * load_n(now + u, n), n);
  });
}

// Mixes h in the same way, writes it to the output as well, and leaves in h what was stored there.
template <class F, class S, class E>
void keep_output(const E* before, const S* keep, Range columns, S* output, E* h) {
  for_vectors<F>(columns, [&](int64_t u, int64_t n) {
    const Vec<F> share = load_n(keep + u, n);
    store_n(output + u, share * load_n(before + u, n) + (1 - share) * load_n(h + u, n), n);
    store_n(h + u, load_n(output + u, n), n);
  });
}

// to = keep; returns whether some of these shares are neither 0 nor 1.
template <class F, class S>
bool load_shares(const S* keep, Range columns, F* to) {
  Vec<F> sum = {};
  for_vectors<F>(columns, [&](int64_t u, int64_t n) {
    const Vec<F> share = load_n(keep + u, n);
    store_n(to + u, share, n);
    sum += share * (1 - share);
  });
  return horizontal_sum<F>(sum) != 0;
}

// A product that the compiler cannot fuse with an addition: it is rounded as in a mixture with
// zero.
template <class F>
__attribute__((noinline)) Vec<F> rounded_product(Vec<F> a, Vec<F> b) {
  return a * b;
}

// own = (mixed - keep * before) / (1 - keep), what the cell gave before it was mixed. `mixed` was
// rounded to the storage type, so a cell's exact zero (relu's) is recognised by the rounded
// product.
template <class F, class S, class E>
void unmix_row(const E* mixed, const E* before, const F* keep, Range columns, E* own) {
  for_vectors<F>(columns, [&](int64_t u, int64_t n) {
    const Vec<F> share = load_n(keep + u, n), after = load_n(mixed + u, n);
    const Vec<F> kept = rounded_product<F>(share, load_n(before + u, n));
    S stored[kLanes<F>];
    store(stored, kept);
    store_n(own + u, load(stored) == after ? splat<F>(0) : (after - kept) / (1 - share), n);
  });
}

// kept = keep * gradient, and what is left of the gradient.
template <class F, class S>
void split_row(const S* keep, Range columns, F* gradient, F* kept) {
  for_vectors<F>(columns, [&](int64_t u, int64_t n) {
    const Vec<F> all = load_n(gradient + u, n), share = all * load_n(keep + u, n);
    store_n(kept + u, share, n);
    store_n(gradient + u, all - share, n);
  });
}

// to += from
template <class F, class S, class T>
void add_row(const S* from, Range columns, T* to) {
  for_vectors<F>(columns, [&](int64_t u, int64_t n) {
    store_n(to + u, load_n(to + u, n) + load_n(from + u, n), n);
  });
}

// Copies what a program's cell reads at a step to where its tile finds it: of `rows` sequences from
// b on, the columns of a group, zeros beyond the last unit.
template <class S, class F>
__attribute__((noinline)) void load_step_inputs(const StepInputs<const void>& from, int kinds,
                                                int64_t t, int64_t d, int64_t b, int64_t rows,
                                                Range columns, ProgramScratch<F>& scratch) {
  for (int kind = 0; kind < kinds; ++kind)
    for (int64_t r = 0; r < rows; ++r) {
      const S* const row = values_of<S>(from, t, d, b + r) + kind * from.kind;
      F* to = scratch[Space::step_input] + kind * scratch.slot + r * scratch.row;
      for_vectors<F>(columns, [&](int64_t u, int64_t n) {
        store(to, from.unit ? load_n(row + u, n) : splat<F>(to_compute(*row)));
        to += kLanes<F>;
      });
    }
}

// Copies the gradients that a tile left, a bit of `kinds` for each, to where they are wanted.
template <class S, class F>
__attribute__((noinline)) void store_step_inputs(const StepInputs<void>& to, uint32_t kinds,
                                                 int64_t t, int64_t d, int64_t b, int64_t rows,
                                                 Range columns, ProgramScratch<F>& scratch) {
  for (int kind = 0; kinds >> kind; ++kind)
    for (int64_t r = 0; r < rows && kinds >> kind & 1; ++r) {
      S* const row = static_cast<S*>(to.data) + to.at(t, d, b + r) + kind * to.kind;
      convert(row + columns.begin,
              scratch[Space::of_step_input] + kind * scratch.slot + r * scratch.row,
              columns.size());
    }
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
