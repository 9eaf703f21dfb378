// What the walks of forward and backward over the steps of one direction share: the order of the
// steps, the rows and units of each thread, and the arena that scratch memory comes from.
#pragma once

#include "layer/problem.h"
#include "panel.h"
#include "plan.h"
#include "team.h"

#if defined(FUSEDRNN_POISON_GAPS)  // tests/sanitize
#include <sanitizer/asan_interface.h>
#endif

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

template <class T>
FUSEDRNN_INLINE T least(T a, T b) {
  return a < b ? a : b;
}
template <class T>
FUSEDRNN_INLINE T most(T a, T b) {
  return a < b ? b : a;
}

template <class T>
FUSEDRNN_INLINE void fill(T* to, int64_t n) {  // with zeros
  for (int64_t i = 0; i < n; ++i) to[i] = T{};
}

// Hands out arrays one after the other; if `base` is null, it only counts their bytes.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    char* const at = base_ ? base_ + used_ : nullptr;
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    // One line more, so that arrays whose size is a power of two do not share cache sets.
    used_ += round_up(bytes, 64) + 64;
#if defined(FUSEDRNN_POISON_GAPS)
    if (base_) ASAN_POISON_MEMORY_REGION(at + bytes, base_ + used_ - (at + bytes));
#endif
    return reinterpret_cast<T*>(at);
  }
  int64_t bytes() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// Steps in the order in which a direction walks them: its step s is time t(s).
struct Steps {
  const Problem& p;
  bool reverse;

  int64_t t(int64_t s) const { return reverse ? p.T - 1 - s : s; }
  int64_t alive(int64_t s) const { return p.batch(t(s)); }
  // Rows that stay alive after step s; the others have their final states then.
  int64_t alive_after(int64_t s) const { return s + 1 < p.T ? least(alive(s), alive(s + 1)) : 0; }
  int64_t row(int64_t s, int64_t b) const { return p.row(t(s), b); }
};

// The share of a thread: rows of the batch if that is split, or groups of vectors of units if units
// are. If sequences differ in length, rows are cut so that each thread has about the same number of
// steps.
inline Range row_share(const Problem& p, const Plan& plan, const Team& team) {
  if (plan.split != Split::batch) return {0, p.B};
  if (!p.offsets) return share(p.B, team.rank, team.size);
  const auto cut = [&](int rank) -> int64_t {
    const int64_t target = p.rows * rank / team.size;
    int64_t b = 0, before = 0, length = p.T;
    for (; b < p.B && before < target; ++b) {
      while (length > 0 && p.batch(length - 1) <= b) --length;
      before += length;
    }
    return b;
  };
  return {cut(team.rank), team.rank + 1 == team.size ? p.B : cut(team.rank + 1)};
}

inline Range group_share(const Groups& groups, const Plan& plan, const Team& team) {
  return plan.split == Split::units ? share(groups.count, team.rank, team.size)
                                    : Range{0, groups.count};
}

// Groups of at most `widest` vectors. If units are split, there are enough groups for every thread.
inline Groups make_groups(int64_t values, int64_t lanes, int64_t widest, const Plan& plan) {
  const int64_t vectors = div_up(values, lanes);
  int64_t count = div_up(vectors, widest);
  if (plan.split == Split::units) {
    const int64_t team = plan.threads / plan.direction_teams;
    count = least(round_up(count, team), vectors);
  }
  return {vectors, count};
}

// Walks all directions. Either each has a team of its own, or one team walks them in turn.
template <class Walk>
void run_directions(const Problem& p, const Plan& plan, ParallelFor parallel_for, Walk walk) {
  struct Context {
    const Problem& p;
    const Plan& plan;
    Walk& walk;
    Barrier barriers[kMaxDirections];
  } context{p, plan, walk, {}};
  run_team(
      parallel_for, plan.threads, time_alone(p),
      [](int rank, int size, void* context_) {
        Context& c = *static_cast<Context*>(context_);
        const int teams = least(c.plan.direction_teams, size);
        const int mine = rank % teams;
        const Team team{rank / teams, (size - mine + teams - 1) / teams, &c.barriers[mine]};
        for (int d = mine; d < c.p.directions; d += teams) {
          c.walk(d, team);
          team.sync();  // the next direction uses the same scratch memory
        }
      },
      &context);
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
