// Loops that do only one thing each: multiply-adds, on enough independent accumulators to hide
// their latency; loads; meetings at a barrier. Each thread runs bursts of the loop until the time
// is up.
#include "peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "capability.h"
#include "team.h"

#if defined(FUSEDRNN_X86)
#include <immintrin.h>
#endif

namespace fusedrnn::cpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kChains = 16, kRounds = 4096;
constexpr std::int64_t kReadAtLeast = 1 << 20;  // bytes per burst: reading the clock takes time
constexpr int kMeetings = 100;                  // per batch: few enough to fit in a time slice

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The sum of what all threads do per second. prepare(i), called in thread i, returns the burst: a
// function that does some work and returns how much.
template <class Prepare>
double rate_of(int threads, double seconds, Prepare prepare) {
  std::atomic<int> ready{0};
  std::vector<double> rate(static_cast<std::size_t>(threads));
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i)
    pool.emplace_back([&, i] {
      auto burst = prepare(i);
      burst();
      ready.fetch_add(1);
      while (ready.load() < threads) std::this_thread::yield();
      const auto start = Clock::now();
      double elapsed = 0, done = 0;
      do {
        done += burst();
        elapsed = since(start);
      } while (elapsed < seconds);
      rate[static_cast<std::size_t>(i)] = done / elapsed;
    });
  for (std::thread& t : pool) t.join();
  double total = 0;
  for (const double r : rate) total += r;
  return total;
}

// The bodies are macros since GCC inlines nothing across functions compiled for different targets.
// Both return a value that depends on all of the work, so that none of it is optimised away.
// One burst of acc = next(acc, a, b); `start` is a vector that differs with c.
#define FUSEDRNN_BURST(name, target, Vector, start, a_value, b_value, next)     \
  target float name(float seed) {                                               \
    static_cast<void>(seed);                                                    \
    const auto a = a_value;                                                     \
    const auto b = b_value;                                                     \
    Vector acc[kChains];                                                        \
    _Pragma("GCC unroll 16") for (int c = 0; c < kChains; ++c) acc[c] = start;  \
    for (int i = 0; i < kRounds; ++i) {                                         \
      _Pragma("GCC unroll 16") for (int c = 0; c < kChains; ++c) acc[c] = next; \
      __asm__ volatile("" ::: "memory");                                        \
    }                                                                           \
    float sum = 0;                                                              \
    _Pragma("GCC unroll 16") for (int c = 0; c < kChains; ++c) sum +=           \
        static_cast<float>(acc[c][0]);                                          \
    return sum;                                                                 \
  }

#define FUSEDRNN_FMA_BURST(name, bytes, target)                                                  \
  typedef float name##_vector __attribute__((vector_size(bytes)));                               \
  FUSEDRNN_BURST(name, target, name##_vector, a + static_cast<float>(c), seed - name##_vector{}, \
                 (seed - name##_vector{}) * 0.5f, acc[c] * a + b)

#define FUSEDRNN_READ(name, bytes, target)                                          \
  target float name(const float* data, std::int64_t floats) {                       \
    typedef float V __attribute__((vector_size(bytes), may_alias, aligned(bytes))); \
    constexpr int kLanes = (bytes) / 4;                                             \
    V acc[kChains] = {};                                                            \
    for (const float* end = data + floats; data < end; data += kChains * kLanes)    \
      _Pragma("GCC unroll 16") for (int c = 0; c < kChains; ++c) acc[c] +=          \
          *reinterpret_cast<const V*>(data + c * kLanes);                           \
    float sum = 0;                                                                  \
    _Pragma("GCC unroll 16") for (int c = 0; c < kChains; ++c) sum += acc[c][0];    \
    return sum;                                                                     \
  }

#if defined(FUSEDRNN_X86)
#define FUSEDRNN_AVX512 __attribute__((target("avx512f,avx512vl,fma")))
#define FUSEDRNN_AVX2 __attribute__((target("avx2,fma")))
#define FUSEDRNN_BF16 __attribute__((target("avx512f,avx512vl,avx512bf16")))
#define FUSEDRNN_INT8 __attribute__((target("avx512f,avx512vl,avx512vnni")))
FUSEDRNN_FMA_BURST(fma_avx512, 64, FUSEDRNN_AVX512)
FUSEDRNN_FMA_BURST(fma_avx2, 32, FUSEDRNN_AVX2)
FUSEDRNN_BURST(dot_bf16, FUSEDRNN_BF16, __m512, _mm512_set1_ps(seed + static_cast<float>(c)),
               (__m512bh)_mm512_set1_epi16(0x3f80), (__m512bh)_mm512_set1_epi16(0x3f00),
               _mm512_dpbf16_ps(acc[c], a, b))
FUSEDRNN_BURST(dot_int8, FUSEDRNN_INT8, __m512i, _mm512_set1_epi32(c), _mm512_set1_epi8(3),
               _mm512_set1_epi8(5), _mm512_dpbusd_epi32(acc[c], a, b))
FUSEDRNN_READ(read_avx512, 64, FUSEDRNN_AVX512)
FUSEDRNN_READ(read_avx2, 32, FUSEDRNN_AVX2)
#endif
FUSEDRNN_FMA_BURST(fma_portable, 16, )
FUSEDRNN_READ(read_portable, 16, )

struct Widest {
  float (*fma)(float);
  float (*read)(const float*, std::int64_t);
  int lanes;
};

Widest widest() {
#if defined(FUSEDRNN_X86)
  if (cpu_capability() >= Capability::avx512) return {fma_avx512, read_avx512, 16};
  if (cpu_capability() >= Capability::avx2) return {fma_avx2, read_avx2, 8};
#endif
  return {fma_portable, read_portable, 4};
}

double peak_of(float (*burst)(float), int products, int threads, double seconds) {
  return rate_of(threads, seconds, [=](int) {
    return [=] {
      volatile float sink = burst(0.5f);
      static_cast<void>(sink);
      return 2.0 * kChains * kRounds * products;
    };
  });
}

struct Free {
  void operator()(float* data) const { std::free(data); }
};

}  // namespace

double fma_peak(int threads, double seconds) {
  return peak_of(widest().fma, widest().lanes, threads, seconds);
}

double bf16_peak([[maybe_unused]] int threads, [[maybe_unused]] double seconds) {
#if defined(FUSEDRNN_X86)
  if (cpu_capability() >= Capability::avx512_bf16) return peak_of(dot_bf16, 32, threads, seconds);
#endif
  return 0;
}

double int8_peak([[maybe_unused]] int threads, [[maybe_unused]] double seconds) {
#if defined(FUSEDRNN_X86)
  if (cpu_capability() >= Capability::avx512_vnni) return peak_of(dot_int8, 64, threads, seconds);
#endif
  return 0;
}

double read_bandwidth(std::int64_t bytes, int threads, double seconds) {
  const Widest w = widest();
  const std::int64_t stride = std::int64_t{4} * kChains * w.lanes;
  const std::int64_t size = (bytes + stride - 1) / stride * stride;
  std::vector<std::unique_ptr<float, Free>> data;
  for (int i = 0; i < threads; ++i) {
    data.emplace_back(static_cast<float*>(
        std::aligned_alloc(4096, static_cast<std::size_t>((size + 4095) / 4096 * 4096))));
    if (!data.back()) throw std::bad_alloc();
  }
  const std::int64_t repeats = size < kReadAtLeast ? kReadAtLeast / size : 1;
  return rate_of(threads, seconds, [&](int i) {
    float* const mine = data[static_cast<std::size_t>(i)].get();
    for (std::int64_t k = 0; k < size / 4; ++k) mine[k] = 1.0f;
    return [=] {
      for (std::int64_t k = 0; k < repeats; ++k) {
        volatile float sink = w.read(mine, size / 4);
        static_cast<void>(sink);
      }
      return static_cast<double>(size * repeats);
    };
  });
}

double barrier_seconds(int threads, double seconds) {
  if (threads == 1) return 0;
  Barrier barrier;
  std::atomic<bool> over{false};
  double least = seconds;
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i)
    pool.emplace_back([&, i] {
      barrier.wait(threads);
      const auto start = Clock::now();
      double before = 0;
      while (!over.load()) {
        for (int k = 0; k < kMeetings; ++k) barrier.wait(threads);
        if (i == 0) {
          const double now = since(start);
          least = std::min(least, (now - before) / kMeetings);
          over.store(now >= seconds);
          before = since(start);
        }
        barrier.wait(threads);  // all see the same answer
      }
    });
  for (std::thread& t : pool) t.join();
  return least;
}

}  // namespace fusedrnn::cpu
