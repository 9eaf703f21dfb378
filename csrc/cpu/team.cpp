// Forms a team out of a parallel_for that may hand several indices to one thread, and need not run
// all of its threads at once: torch's own pool ("native" threading) may be busy with another call.
// So the thread with index 0 waits a while for the others and then closes the team. A thread that
// comes later finds it closed and has nothing to do.
#include "team.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "fork.h"
#include "processors.h"

namespace fusedrnn::cpu {
namespace {

constexpr int kSpins = 4000;  // 100 us on Zen 5; most steps take less

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

int64_t nanoseconds(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

// When other processes use the cores, a team may take longer than a single thread would, since all
// of its threads wait for the one that is not running. After such a call a single thread makes the
// next one. If the team is no better after that, a single thread makes the next two calls, then
// four, up to 64.
class Crowd {
 public:
  // Whether a single thread should make this call. Never so for a long call, where a mistake would
  // cost most.
  bool is_avoided(double time_alone) {
    if (time_alone > kLong || processors_are_given()) return false;
    int left = left_.load(std::memory_order_relaxed);
    while (left > 0 && !left_.compare_exchange_weak(left, left - 1, std::memory_order_relaxed)) {
    }
    return left > 0;
  }

  // `took` is how long a team's call lasted, `worked` how long its threads ran, added up: about
  // what one thread would have taken.
  void learn(int64_t took, int64_t worked) {
    const int next = next_.load(std::memory_order_relaxed);
    if (took <= worked) {
      if (next > 1) next_.store(1, std::memory_order_relaxed);
      return;
    }
    left_.store(next, std::memory_order_relaxed);
    next_.store(next < kMost ? 2 * next : next, std::memory_order_relaxed);
  }

 private:
  static constexpr double kLong = 50e6;
  static constexpr int kMost = 64;
  std::atomic<int> left_{0}, next_{1};
};

Crowd crowd;

class Formation {
 public:
  Formation(int threads, double time_alone, void (*body)(int, int, void*), void* context)
      : threads_(threads),
        // Waiting for longer than one thread takes to do the work would not pay.
        patience_(processors_are_given() ? kLongest : kShortest + time_alone),
        is_timed_(time_alone > kTimed && !processors_are_given()),
        body_(body),
        context_(context) {}

  // What the thread with the indices [begin, end) does.
  void join(int64_t begin, int64_t end) {
    const int ticket = begin == 0 ? 0 : 1 + followers_.fetch_add(1, std::memory_order_acq_rel);
    if (begin == 0) close(end);
    if (ticket > kClosed) return;
    size_.wait_while(0);
    const int size = static_cast<int>(size_.load());
    // In a complete team each thread gets the rank that it had in the last call, since its cache
    // holds the weights for that rank.
    const int rank = size == expected_ ? static_cast<int>(begin / each_) : ticket;
    if (!is_timed_) return body_(rank, size, context_);
    const int64_t start = nanoseconds(CLOCK_THREAD_CPUTIME_ID);
    body_(rank, size, context_);
    worked_.fetch_add(nanoseconds(CLOCK_THREAD_CPUTIME_ID) - start, std::memory_order_relaxed);
  }

  bool is_timed() const { return is_timed_; }
  int64_t worked() const { return worked_.load(std::memory_order_relaxed); }

 private:
  void close(int64_t each) {
    each_ = each;
    expected_ = static_cast<int>((threads_ + each - 1) / each);
    const int64_t start = nanoseconds(CLOCK_MONOTONIC);
    for (int spins = 0; followers_.load(std::memory_order_acquire) + 1 < expected_; ++spins) {
      if (spins < kSpins) {
        pause();
      } else {
        if (static_cast<double>(nanoseconds(CLOCK_MONOTONIC) - start) > patience_) break;
        sched_yield();
      }
    }
    const int came = followers_.fetch_add(kClosed, std::memory_order_acq_rel);
    size_.store(static_cast<unsigned>(came + 1));
  }

  static constexpr int kClosed = 1 << 24;  // more than there are threads
  // In nanoseconds. The first leaves time to wake a thread up.
  static constexpr double kShortest = 200e3, kLongest = 10e9;
  static constexpr double kTimed = 500e3;  // below it, reading a thread's time (0.5 us) would show

  const int64_t threads_;
  const double patience_;
  const bool is_timed_;
  void (*const body_)(int, int, void*);
  void* const context_;
  int64_t each_ = 1;  // indices per thread
  int expected_ = 1;
  std::atomic<int> followers_{0};
  std::atomic<int64_t> worked_{0};  // the time that its threads ran, in nanoseconds
  Word size_;                       // 0 until the team is closed
};

}  // namespace

void Word::wait_while(unsigned value) {
  for (int spins = 0; spins < kSpins; ++spins) {
    if (load() != value) return;
    pause();
  }
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (load() == value)
    syscall(SYS_futex, &word_, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

void Word::wake() {
  constexpr int kAll = 1 << 30;
  syscall(SYS_futex, &word_, FUTEX_WAKE_PRIVATE, kAll, nullptr, nullptr, 0);
}

void run_team(ParallelFor parallel_for, int threads, double time_alone,
              void (*body)(int, int, void*), void* context) {
  if (threads <= 1 || is_forked() || crowd.is_avoided(time_alone)) return body(0, 1, context);
  Formation formation(threads, time_alone, body, context);
  const int64_t start = nanoseconds(CLOCK_MONOTONIC);
  parallel_for(
      threads,
      [](int64_t begin, int64_t end, void* formation_) {
        static_cast<Formation*>(formation_)->join(begin, end);
      },
      &formation);
  if (formation.is_timed()) crowd.learn(nanoseconds(CLOCK_MONOTONIC) - start, formation.worked());
}

}  // namespace fusedrnn::cpu
