// A team of threads that walk one direction together, and the barrier at which they meet each step.
//
// Threads come from torch's own pool through `ParallelFor` (a pool of ours beside it would fight
// with torch's spinning threads for the cores). The pool may give fewer threads than asked for, one
// when called inside a parallel region: the team then is smaller, and results are the same, since
// no number depends on how the work was shared.
#pragma once

#include <atomic>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sched.h>

#include "../backend.h"

namespace fusedrnn {

// All arrive before any leaves. Spins, since a step is microseconds, then yields, since the machine
// may be oversubscribed. Sense-reversing: reusable at once.
class Barrier {
 public:
  void wait(int size) {
    if (size == 1) return;
    const unsigned phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase;) {
      if (++spins < kSpins) {
#if defined(__x86_64__)
        _mm_pause();
#endif
      } else {
        sched_yield();
      }
    }
  }

 private:
  static constexpr int kSpins = 4000;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
};

struct Team {
  int rank = 0, size = 1;
  Barrier* barrier = nullptr;
  void sync() const {
    if (size > 1) barrier->wait(size);
  }
};

// Calls body(rank, size, context) on up to `threads` threads at once, every rank below size.
void run_team(ParallelFor parallel_for, int threads,
              void (*body)(int rank, int size, void* context), void* context);

}  // namespace fusedrnn
