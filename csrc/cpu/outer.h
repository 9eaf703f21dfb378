// W (+)= A^T B: gradients of weights, summed over the rows of a chunk.
//
//   A  dgates          blocks of kBlock gate rows    [block][row][kBlock]
//   B  x, h_prev, ...  panels of columns             [group][row][nv][lanes]
//
// Both are read row by row. A register tile holds a piece of W, and its depth k runs over the rows.
#pragma once

#include "walk.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

// Gate rows in a block. Eight of them by three vectors fill the registers, and the usual hidden
// sizes leave no remainder.
constexpr int kBlock = kAccumulators / 3;

// Stores a row of a block, or two rows interleaved.
template <class F>
FUSEDRNN_INLINE void store_block(F* to, const F* row, const F*) {
  __builtin_memcpy(to, row, kBlock * sizeof(F));
}
// Adds each value of a row, or of two interleaved rows, to sums.
template <class F>
FUSEDRNN_INLINE void add_block(F (&sums)[kBlock], const F* row) {
  for (int r = 0; r < kBlock; ++r) sums[r] += row[r];
}
#if defined(__AVX512BF16__)
static_assert(kBlock == 8, "one half of a 128-bit vector of bf16");
FUSEDRNN_INLINE void store_block(BFloat16* to, const BFloat16* row, const BFloat16* second) {
  const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(second));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi16(a, b));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to) + 1, _mm_unpackhi_epi16(a, b));
}
FUSEDRNN_INLINE void add_block(float (&sums)[kBlock], const BFloat16* pairs) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs));
  const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));  // a float's upper half
  const __m256 second = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(-65536)));
  _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_loadu_ps(sums), _mm256_add_ps(first, second)));
}
#endif

// out[r][columns] (+)= sum_k a[k][r] * b[k][columns], r < rows of the block.
template <int N, class E, class F>
__attribute__((noinline)) void outer_tile(const E* a, const E* b, int64_t K, F* out, int64_t ld,
                                          int64_t rows, int64_t columns, bool add) {
  constexpr int L = kLanes<F>;
  Vec<F> acc[kBlock][N] = {};
  constexpr int kPair = kTogether<E>;
  const E* row[kBlock];
#pragma GCC unroll 8
  for (int r = 0; r < kBlock; ++r) row[r] = a + r * kPair;
  multiply<kBlock, N, E, F>(acc, row, kBlock * kPair, K, b);
#pragma GCC unroll 8
  for (int r = 0; r < kBlock; ++r) {
    if (r >= rows) break;
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      F* const to = out + r * ld + n * L;
      const int64_t valid = n == N - 1 ? columns : L;
      store_n(to, add ? load_n(to, valid) + acc[r][n] : acc[r][n], valid);
    }
  }
}

// The B side of A^T B: rows gathered into panels [group][k][nv][lanes]. Rows come kTogether at a
// time (a missing second row is null). K is the number of rows, rounded up to that.
template <class E, class F>
struct OuterPanels {
  static constexpr int64_t L = kLanes<F>, kWidest = 3;
  int64_t columns = 0;
  Groups groups;
  E* data = nullptr;

  void allocate(Arena& arena, int64_t columns_, int64_t K) {
    columns = columns_;
    groups = Groups(div_up(columns, L), div_up(columns, L * kWidest));
    data = arena.take<E>(groups.vectors * L * K);
  }
  void put(const E* row, const E* second, int64_t k, int64_t K) {
    for (int64_t group = 0; group < groups.count; ++group) {
      const int64_t first = groups.begin(group) * L, nv = groups.size(group);
      E* to = data + first * K + k * nv * L;
      for (int64_t v = 0, column = first; v < nv; ++v, column += L, to += L * kTogether<E>) {
        if constexpr (kTogether<E> == 1) {
          static_cast<void>(second);
          store(to, load_n(row + column, columns - column));
        } else {
          store_pairs(to, row + column, second ? second + column : nullptr, columns - column);
        }
      }
    }
  }
  // out[block rows][columns] (+)= A block^T * this
  void multiply_block(const E* a, int64_t K, F* out, int64_t block_rows, bool add,
                      int64_t group) const {
    const int64_t first = groups.begin(group) * L, nv = groups.size(group);
    const E* const b = data + first * K;
    const int64_t last = least(columns - first - (nv - 1) * L, L);
    switch (nv) {
      case 1: return outer_tile<1, E, F>(a, b, K, out + first, columns, block_rows, last, add);
      case 2: return outer_tile<2, E, F>(a, b, K, out + first, columns, block_rows, last, add);
      case 3: return outer_tile<3, E, F>(a, b, K, out + first, columns, block_rows, last, add);
    }
  }
};

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
