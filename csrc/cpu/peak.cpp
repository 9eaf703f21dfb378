// Multiply-adds on as many independent accumulators as hide their latency, nothing else.
#include "peak.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "capability.h"

namespace fusedrnn {
namespace {

constexpr int kChains = 16, kRounds = 4096;

// One burst on vectors of kBytes; returns a value that depends on all of it. The body is a macro
// since GCC inlines nothing across functions compiled for different targets.
#define FUSEDRNN_BURST(name, bytes, target)                                                        \
  target float name(float seed) {                                                                  \
    typedef float V __attribute__((vector_size(bytes)));                                           \
    V acc[kChains], a = seed - V{}, b = a * 0.5f;                                                  \
    _Pragma("GCC unroll 16") for (int c = 0; c < kChains; ++c) acc[c] = a + static_cast<float>(c); \
    for (int i = 0; i < kRounds; ++i) {                                                            \
      _Pragma("GCC unroll 16") for (int c = 0; c < kChains; ++c) acc[c] = acc[c] * a + b;          \
      __asm__ volatile("" ::: "memory");                                                           \
    }                                                                                              \
    float sum = 0;                                                                                 \
    _Pragma("GCC unroll 16") for (int c = 0; c < kChains; ++c) sum += acc[c][0];                   \
    return sum;                                                                                    \
  }

#if defined(FUSEDRNN_X86)
FUSEDRNN_BURST(burst_avx512, 64, __attribute__((target("avx512f,avx512vl,fma"))))
FUSEDRNN_BURST(burst_avx2, 32, __attribute__((target("avx2,fma"))))
#endif
FUSEDRNN_BURST(burst_portable, 16, )

struct Burst {
  float (*run)(float);
  int lanes;
};

Burst burst() {
#if defined(FUSEDRNN_X86)
  if (cpu_capability() >= Capability::avx512) return {burst_avx512, 16};
  if (cpu_capability() >= Capability::avx2) return {burst_avx2, 8};
#endif
  return {burst_portable, 4};
}

}  // namespace

double fma_peak(int threads, double seconds) {
  const Burst b = burst();
  std::atomic<int> ready{0};
  std::vector<double> rate(static_cast<std::size_t>(threads));
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i)
    pool.emplace_back([&, i] {
      using Clock = std::chrono::steady_clock;
      volatile float sink = b.run(0.5f);
      ready.fetch_add(1);
      while (ready.load() < threads) std::this_thread::yield();
      const auto start = Clock::now();
      double elapsed = 0;
      long bursts = 0;
      do {
        sink = b.run(0.5f);
        ++bursts;
        elapsed = std::chrono::duration<double>(Clock::now() - start).count();
      } while (elapsed < seconds);
      static_cast<void>(sink);
      rate[static_cast<std::size_t>(i)] = 2.0 * kChains * kRounds * b.lanes * bursts / elapsed;
    });
  for (std::thread& t : pool) t.join();
  double total = 0;
  for (const double r : rate) total += r;
  return total;
}

}  // namespace fusedrnn
