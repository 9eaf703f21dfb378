// Forms a team out of a parallel_for that may hand several indices to one thread, and need not run
// all of its threads at once: torch's own pool ("native" threading) may be busy with another call.
// So the thread of index 0 waits a while for the others and then closes the team. Who comes later
// finds it closed and has nothing to do.
#include "team.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>

#include "fork.h"

namespace fusedrnn {

void Word::sleep_while(unsigned value) {
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (load() == value)
    syscall(SYS_futex, &word_, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

void Word::wake() {
  constexpr int kAll = 1 << 30;
  syscall(SYS_futex, &word_, FUTEX_WAKE_PRIVATE, kAll, nullptr, nullptr, 0);
}

namespace {

class Formation {
 public:
  Formation(void (*body)(int, int, void*), void* context, int threads)
      : body_(body), context_(context), threads_(threads) {}

  // The thread that has indices begin to end takes part.
  void join(int64_t begin, int64_t end) {
    const int ticket = begin == 0 ? 0 : 1 + followers_.fetch_add(1, std::memory_order_acq_rel);
    if (begin == 0) close(end);
    if (ticket > kClosed) return;
    size_.wait_while(0);
    const int size = static_cast<int>(size_.load());
    // Whole, each has its place of the call before, whose weights its cache holds.
    body_(size == expected_ ? static_cast<int>(begin / each_) : ticket, size, context_);
  }

 private:
  void close(int64_t each) {
    each_ = each;
    expected_ = static_cast<int>((threads_ + each - 1) / each);
    const auto start = std::chrono::steady_clock::now();
    for (int spins = 0; followers_.load(std::memory_order_acquire) + 1 < expected_; ++spins) {
      if (spins < kSpins) {
#if defined(__x86_64__)
        _mm_pause();
#endif
        continue;
      }
      if (std::chrono::steady_clock::now() - start > kPatience) break;
      sched_yield();
    }
    const int came = followers_.fetch_add(kClosed, std::memory_order_acq_rel);
    size_.store(static_cast<unsigned>(came + 1));
  }

  static constexpr int kClosed = 1 << 24;  // more than there are threads
  static constexpr int kSpins = 1000;
  // Threads that slept come within a tenth of it.
  static constexpr std::chrono::microseconds kPatience{2000};

  void (*const body_)(int, int, void*);
  void* const context_;
  const int64_t threads_;
  int64_t each_ = 1;  // indices of a thread
  int expected_ = 1;
  std::atomic<int> followers_{0};
  Word size_;  // 0 until the team is closed
};

}  // namespace

void run_team(ParallelFor parallel_for, int threads, void (*body)(int, int, void*), void* context) {
  if (threads <= 1 || is_forked()) return body(0, 1, context);
  Formation formation(body, context, threads);
  parallel_for(
      threads,
      [](int64_t begin, int64_t end, void* formation_) {
        static_cast<Formation*>(formation_)->join(begin, end);
      },
      &formation);
}

}  // namespace fusedrnn
