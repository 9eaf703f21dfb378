// Products with the weights in place: for calls of so few rows that making panels would not pay.
#pragma once

#include "vec.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

// out[j] += W[j][:] . x for j in [0, count), for one row of x.
template <class S, class E, class F>
inline void add_dots(const S* W, int64_t ld, int64_t count, const E* x, int64_t K, F* out) {
  constexpr int kTogether = 8, L = kLanes<F>;
  int64_t j = 0;
  const auto dots = [&](auto together) {
    constexpr int n = together;
    Vec<F> acc[n] = {};
    int64_t k = 0;
    for (; k + L <= K; k += L) {
      const Vec<F> v = load(x + k);
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) acc[i] += v * load(W + (j + i) * ld + k);
    }
    if (k < K) {
      const Vec<F> v = load_n(x + k, K - k);
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) acc[i] += v * load_n(W + (j + i) * ld + k, K - k);
    }
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) out[j + i] += horizontal_sum<F>(acc[i]);
    j += n;
  };
  while (j + kTogether <= count) dots(std::integral_constant<int, kTogether>());
  while (j < count) dots(std::integral_constant<int, 1>());
}

// out[c] = sum_k g[k] * W[k][first + c] for `columns` columns. k runs over the units of all grad
// slots. Each output has two chains of sums, to hide the latency.
template <class S, class E, class F>
inline void row_times_weights(const E* g, int64_t slots, int64_t slot_stride,
                              const signed char* gate_of, const S* W, int64_t H, int64_t N,
                              int64_t first, int64_t columns, F* out) {
  constexpr int64_t L = kLanes<F>;
  for (int64_t c = 0; c < columns; c += kGroup * L) {
    Vec<F> even[kGroup] = {}, odd[kGroup] = {};
    const auto add = [&](Vec<F>(&acc)[kGroup], F x, const S* row) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int v = 0; v < kGroup; ++v)
        if (c + v * L < columns) acc[v] += x * load_n(row + v * L, columns - c - v * L);
    };
    for (int64_t s = 0; s < slots; ++s) {
      const S* row = W + gate_of[s] * H * N + first + c;
      const E* const x = g + s * slot_stride;
      int64_t u = 0;
      for (; u + 2 <= H; u += 2, row += 2 * N) {
        add(even, to_compute(x[u]), row);
        add(odd, to_compute(x[u + 1]), row + N);
      }
      if (u < H) add(even, to_compute(x[u]), row);
    }
    for (int v = 0; v < kGroup; ++v)
      if (c + v * L < columns) store_n(out + c + v * L, even[v] + odd[v], columns - c - v * L);
  }
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
