// The register tile under every product of the CPU backend:
//
//   acc[r][n] += sum_k a[r][k] * w[k][n],   r < R rows,  n < N vectors
//
// `w` is a panel, [k][N][lanes], read once from start to end; `a` are scalars, which are broadcast.
// A tile holds as many accumulators as the instruction set has registers for. Each output is one
// chain of sums over k, in order, whatever R is, so results do not depend on how rows were cut into
// tiles or shared among threads. The one exception is a single row (`multiply_single`), used when
// the whole batch is one row. It sums in four chains, since one chain cannot hide the latency of
// the multiply-add.
//
// Operands have the type E. It is the compute type F, or bf16 where the processor multiplies pairs
// of bf16 and adds both products in fp32. Panels are then [k / 2][N][lanes][2]; if the depth is
// odd, the second half of the last pair is zero.
#pragma once

#include "layer/problem.h"
#include "vec.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

// Rows of a tile of N vectors.
constexpr int tile_rows(int N) { return kAccumulators / N < 8 ? kAccumulators / N : 8; }
// Vectors of units that one tile spans, where the cell leaves the choice.
constexpr int kGroup = kAccumulators == 24 ? 4 : 2;

// The type of a product's operands for tensors of storage type S, and how many of them one lane of
// an instruction multiplies.
template <class S>
struct OperandOf {
  using type = decltype(to_compute(S()));
};
template <class E>
constexpr int kTogether = 1;

template <class F>
struct Operand {  // of compute type
  FUSEDRNN_INLINE static Vec<F> broadcast(const F* a) { return splat(*a); }
  FUSEDRNN_INLINE static Vec<F> broadcast_last(const F* a) { return splat(*a); }
  FUSEDRNN_INLINE static Vec<F> load_panel(const F* w) { return load(w); }
  FUSEDRNN_INLINE static Vec<F> multiply_add(Vec<F> a, Vec<F> w, Vec<F> acc) {
#if defined(FUSEDRNN_CONTRACTS_NOTHING)  // compiled_cell.h
    return FUSEDRNN_ISA::multiply_add<F>(a, w, acc);
#else
    return acc + a * w;
#endif
  }
};

#if defined(__AVX512BF16__)
template <>
struct OperandOf<BFloat16> {
  using type = BFloat16;
};
template <>
constexpr int kTogether<BFloat16> = 2;

template <>
struct Operand<BFloat16> {  // pairs, carried as the bits of a float
  FUSEDRNN_INLINE static __m512 broadcast(const BFloat16* a) {
    int32_t pair;
    __builtin_memcpy(&pair, a, sizeof(pair));
    return bit_cast<__m512>(_mm512_set1_epi32(pair));
  }
  FUSEDRNN_INLINE static __m512 broadcast_last(const BFloat16* a) {  // odd depth: half a pair
    return bit_cast<__m512>(_mm512_set1_epi32(a->bits));
  }
  FUSEDRNN_INLINE static __m512 load_panel(const BFloat16* w) { return _mm512_loadu_ps(w); }
  FUSEDRNN_INLINE static __m512 multiply_add(__m512 a, __m512 w, __m512 acc) {
    return _mm512_dpbf16_ps(acc, bit_cast<__m512bh>(w), bit_cast<__m512bh>(a));
  }
};
#endif

constexpr int64_t kLine = 64;  // bytes of a cache line

// Each row has W accumulators; the panel's N vectors are added to N of them, from kFirst on. a[r]
// advances by `a_stride` for every kTogether values of k. Each time one line of `ahead`, if that is
// given, is prefetched.
template <int R, int N, class E, class F, int kFirst = 0, int W = N>
FUSEDRNN_INLINE void multiply(Vec<F> (&acc)[R][W], const E* const (&a)[R], int64_t a_stride,
                              int64_t K, const E* __restrict w, const char* ahead = nullptr) {
  using O = Operand<E>;
  constexpr int kPair = kTogether<E>, kVector = kLanes<F> * kPair;
  const auto at_depth = [&](int64_t i, auto broadcast) __attribute__((always_inline)) {
    Vec<F> b[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) b[n] = O::load_panel(w + n * kVector);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<F> x = broadcast(a[r] + i * a_stride);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) acc[r][kFirst + n] = O::multiply_add(x, b[n], acc[r][kFirst + n]);
    }
    w += N * kVector;
  };
  const int64_t whole = K / kPair;
  int64_t i = 0;
  for (; ahead && i < whole; ++i) {
    __builtin_prefetch(ahead + i * kLine, 0, 2);
    at_depth(i, [](const E* x) { return O::broadcast(x); });
  }
  for (; i < whole; ++i) at_depth(i, [](const E* x) { return O::broadcast(x); });
  if (kPair > 1 && K % kPair) at_depth(whole, [](const E* x) { return O::broadcast_last(x); });
}

template <int N, class E, class F, int kFirst = 0, int W = N>
FUSEDRNN_INLINE void multiply_single(Vec<F> (&acc)[1][W], const E* a, int64_t K,
                                     const E* __restrict w) {
  using O = Operand<E>;
  constexpr int kChains = 4, kPair = kTogether<E>, kVector = kLanes<F> * kPair;
  constexpr int kStride = N * kVector;
  Vec<F> chain[kChains][N] = {};
  const auto add_to_chain = [&](int j, Vec<F> x) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
      chain[j][n] = O::multiply_add(x, O::load_panel(w + n * kVector), chain[j][n]);
    w += kStride;
  };
  const int64_t whole = K / kPair;
  int64_t i = 0;
  for (; i + kChains <= whole; i += kChains) {
#pragma GCC unroll 8
    for (int j = 0; j < kChains; ++j) add_to_chain(j, O::broadcast(a + (i + j) * kPair));
  }
  for (; i < whole; ++i) add_to_chain(0, O::broadcast(a + i * kPair));
  if (kPair > 1 && K % kPair) add_to_chain(0, O::broadcast_last(a + whole * kPair));
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n)
    acc[0][kFirst + n] += (chain[0][n] + chain[1][n]) + (chain[2][n] + chain[3][n]);
}

// A row that a product takes in segments: its depth is count * length, and segment s begins at
// a + s * stride. (The slots of a row of gates are Hp apart, but only H values of each count.)
struct Segments {
  int64_t count, length, stride;
};

// acc += the product over all segments. R == 0 means a single row.
template <int R, int N, class E, class F, int kFirst = 0, int W = N>
FUSEDRNN_INLINE void multiply_segments(Vec<F> (&acc)[R ? R : 1][W], const E* const* rows,
                                       Segments segments, const E* w, const char* ahead = nullptr) {
  constexpr int kPair = kTogether<E>;
  const E* a[R ? R : 1];
#pragma GCC unroll 8
  for (int r = 0; r < (R ? R : 1); ++r) a[r] = rows[r];
  for (int64_t s = 0; s < segments.count; ++s) {
    if constexpr (R == 0)
      multiply_single<N, E, F, kFirst>(acc, a[0], segments.length, w);
    else
      multiply<R, N, E, F, kFirst>(acc, a, kPair, segments.length, w, ahead);
    if (ahead) ahead += segments.length / kPair * kLine;
#pragma GCC unroll 8
    for (int r = 0; r < (R ? R : 1); ++r) a[r] += segments.stride;
    w += round_up(segments.length, kPair) * N * kLanes<F>;
  }
}

// Brings the next panel into a near cache while the tiles of this one are computed. Tile i
// prefetches its share of the panel, one line for every kTogether values of k. The hardware's own
// prefetching is enough for weights that are near. Without this, weights beyond the L2 cache are
// read at a third less than the speed of the multiply-adds.
struct Ahead {
  static constexpr int64_t kNear = 768 * 1024;  // bytes of weights that stay near by themselves
  const char* panel = nullptr;                  // null: nothing to bring
  int64_t bytes = 0, bytes_per_tile = 0;

  template <class E>
  void set(const E* next, int64_t values, int64_t k) {
    panel = reinterpret_cast<const char*>(next);
    bytes = values * static_cast<int64_t>(sizeof(E));
    bytes_per_tile = k / kTogether<E> * kLine;
  }
  const char* of_tile(int64_t i) const {
    return panel && i * bytes_per_tile < bytes ? panel + i * bytes_per_tile : nullptr;
  }
};

// Cuts `total` rows into tiles of at most `most` rows, as evenly as possible.
struct Tiles {
  int64_t count, base, longer;
  FUSEDRNN_INLINE Tiles(int64_t total, int64_t most)
      : count((total + most - 1) / most),
        base(count ? total / count : 0),
        longer(count ? total % count : 0) {}
  FUSEDRNN_INLINE int64_t size(int64_t i) const { return base + (i < longer); }
};

// out[r] = start + rows[r] * w for N vectors of columns; `start` is a bias or zero.
template <class E, class F>
struct LinearTile {
  const E* rows[8];
  Segments segments;
  const E* w;
  const char* ahead = nullptr;  // see Ahead
  const F* bias = nullptr;      // N vectors, bias_stride apart; null: zeros
  int64_t bias_stride = 0;
  F* out[8];
  int64_t column_stride;  // between consecutive vectors of out
  int64_t columns;        // valid values in the last vector
};

template <int R, int N, class E, class F>
__attribute__((noinline)) void linear_tile(const LinearTile<E, F>& t) {
  constexpr int kRows = R ? R : 1;
  Vec<F> acc[kRows][N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    const bool last = n == N - 1;
    const Vec<F> start =
        !t.bias ? Vec<F>{} : load_n(t.bias + n * t.bias_stride, last ? t.columns : kLanes<F>);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) acc[r][n] = start;
  }
  multiply_segments<R, N, E, F>(acc, t.rows, t.segments, t.w, t.ahead);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < N - 1; ++n) store(t.out[r] + n * t.column_stride, acc[r][n]);
    store_n(t.out[r] + (N - 1) * t.column_stride, acc[r][N - 1], t.columns);
  }
}

// Calls call(R) with R as a constant, for R in 0..kMost (0: a single row).
template <int kMost, class Call>
FUSEDRNN_INLINE void with_rows(int64_t R, Call call) {
  static_assert(kMost <= 8, "tiles of at most eight rows");
#define FUSEDRNN_CASE(n)                                              \
  case n:                                                             \
    if constexpr (n <= kMost) call(std::integral_constant<int, n>()); \
    break;
  switch (R) {
    FUSEDRNN_CASE(0)
    FUSEDRNN_CASE(1)
    FUSEDRNN_CASE(2)
    FUSEDRNN_CASE(3)
    FUSEDRNN_CASE(4)
    FUSEDRNN_CASE(5)
    FUSEDRNN_CASE(6)
    FUSEDRNN_CASE(7)
    FUSEDRNN_CASE(8)
  }
#undef FUSEDRNN_CASE
}

// Calls call(N) with N as a constant, for N vectors: those of a group, or of several gates.
template <class Call>
FUSEDRNN_INLINE void with_vectors(int64_t N, Call call) {
  switch (N) {
    case 1: call(std::integral_constant<int, 1>()); break;
    case 2: call(std::integral_constant<int, 2>()); break;
    case 3: call(std::integral_constant<int, 3>()); break;
    case 4: call(std::integral_constant<int, 4>()); break;
  }
}

// Each of these is compiled once, where an isa/*.cpp instantiates it, and all of them use it.
template <class E, class F>
void linear(int64_t R, int64_t N, const LinearTile<E, F>& t) {
  with_vectors(
      N, [&](auto n) { with_rows<tile_rows(n)>(R, [&](auto r) { linear_tile<r, n, E, F>(t); }); });
}
extern template void linear(int64_t, int64_t, const LinearTile<float, float>&);
extern template void linear(int64_t, int64_t, const LinearTile<double, double>&);
#if defined(__AVX512BF16__)
extern template void linear(int64_t, int64_t, const LinearTile<BFloat16, float>&);
#endif

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
