// Forms a team out of a parallel_for that may hand several indices to one thread.
#include "team.h"

#include <pthread.h>

namespace fusedrnn {
namespace {

// After fork the OpenMP pool of the parent does not exist in the child, and waiting for it would
// never end: the child works alone.
std::atomic<bool> forked{false};
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

struct Formation {
  void (*body)(int, int, void*);
  void* context;
  int64_t threads;
  std::atomic<int64_t> indices_per_rank{0};  // known once rank 0 has begun
};

void join(int64_t begin, int64_t end, void* formation_) {
  Formation& formation = *static_cast<Formation*>(formation_);
  if (begin == 0) formation.indices_per_rank.store(end, std::memory_order_release);
  int64_t each;
  while ((each = formation.indices_per_rank.load(std::memory_order_acquire)) == 0) sched_yield();
  const int64_t size = (formation.threads + each - 1) / each;
  formation.body(static_cast<int>(begin / each), static_cast<int>(size), formation.context);
}

}  // namespace

void run_team(ParallelFor parallel_for, int threads, void (*body)(int, int, void*), void* context) {
  if (threads <= 1 || fork_handler != 0 || forked.load(std::memory_order_relaxed))
    return body(0, 1, context);
  Formation formation{body, context, threads};
  parallel_for(threads, join, &formation);
}

}  // namespace fusedrnn
