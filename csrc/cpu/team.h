// A team of threads that walk one direction together, and the barrier at which they meet each step.
//
// Threads come from torch's own pool through `ParallelFor` (a second pool would fight with torch's
// spinning threads for the cores). The pool may give fewer threads than asked for, such as only one
// inside a parallel region, or give them late. The team is then smaller. Results are the same,
// since no number depends on how the work was shared.
#pragma once

#include <atomic>
#include <cstdint>

#include "layer/backend.h"

namespace fusedrnn::cpu {

// A number; threads can wait until it changes. They spin first, since a step takes microseconds,
// and then sleep, since another process may have the core that the awaited thread needs.
class Word {
 public:
  unsigned load() const { return word_.load(std::memory_order_acquire); }

  // A thread that sees the new value sees all that was written before it.
  void store(unsigned value) {
    word_.store(value, std::memory_order_seq_cst);  // before the sleepers are counted
    if (sleepers_.load(std::memory_order_seq_cst)) wake();
  }

  void wait_while(unsigned value);

 private:
  void wake();

  std::atomic<unsigned> word_{0};
  std::atomic<int> sleepers_{0};
};

// All arrive before any leaves. Reusable at once: the word counts the meetings.
class Barrier {
 public:
  void wait(int size) {
    if (size == 1) return;
    const unsigned meeting = meetings_.load();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived_.store(0, std::memory_order_relaxed);
      meetings_.store(meeting + 1);
    } else {
      meetings_.wait_while(meeting);
    }
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) Word meetings_;
};

struct Team {
  int rank = 0, size = 1;
  Barrier* barrier = nullptr;
  void sync() const {
    if (size > 1) barrier->wait(size);
  }
};

// Calls body(rank, size, context) on up to `threads` threads at once, once for each rank below
// size.
// `time_alone` is about how many nanoseconds one thread would take.
void run_team(ParallelFor parallel_for, int threads, double time_alone,
              void (*body)(int rank, int size, void* context), void* context);

}  // namespace fusedrnn::cpu
