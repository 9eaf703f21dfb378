// Weights in the order in which the tiles read them.
//
//   gate panels    [group][k][gate][nv][lanes]   for  gates[row] = a[row] * W^T   k: columns of W
//   column panels  [group][gate][k][nv][lanes]   for  out[row]   = g[row] * W     k: a gate's units
//
// W is torch's [gates*H][K], row-major. A group is nv consecutive vectors of units (gate panels) or
// of columns (column panels); values beyond the last are zero. Operands that are multiplied in
// pairs (tile.h) are stored in pairs of k: [k / 2]...[lanes][2].
#pragma once

#include "tile.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

// `vectors` vectors cut into `count` groups, as evenly as possible: the first `longer` groups have
// one vector more.
struct Groups {
  int64_t vectors = 0, count = 0;

  Groups() = default;
  Groups(int64_t vectors, int64_t count)
      : vectors(vectors),
        count(count),
        base_(count ? vectors / count : 0),
        longer_(count ? vectors % count : 0) {}
  FUSEDRNN_INLINE int64_t begin(int64_t group) const {
    return group * base_ + (group < longer_ ? group : longer_);
  }
  FUSEDRNN_INLINE int64_t size(int64_t group) const { return base_ + (group < longer_); }

 private:
  int64_t base_ = 0, longer_ = 0;  // kept, since a step may take no longer than a few divisions
};

struct Range {
  int64_t begin, end;
  FUSEDRNN_INLINE int64_t size() const { return end - begin; }
};
FUSEDRNN_INLINE Range share(int64_t n, int rank, int size) {
  return {n * rank / size, n * (rank + 1) / size};
}

// Transposes lanes x lanes values held in as many registers, in log2(lanes) rounds. Each round
// interleaves register i with register i + lanes/2.
template <class F>
FUSEDRNN_INLINE void transpose(Vec<F> (&row)[kLanes<F>]) {
  constexpr int L = kLanes<F>;
  typedef typename VectorType<Bits<F>>::type Index;
  Index low = {}, high = {};
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) {
    low[l] = l / 2 + (l % 2) * L;
    high[l] = L / 2 + l / 2 + (l % 2) * L;
  }
#pragma GCC unroll 4
  for (int round = 1; round < L; round *= 2) {
    Vec<F> next[L];
#pragma GCC unroll 16
    for (int i = 0; i < L / 2; ++i) {
      next[2 * i] = __builtin_shuffle(row[i], row[i + L / 2], low);
      next[2 * i + 1] = __builtin_shuffle(row[i], row[i + L / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) row[i] = next[i];
  }
}

// Loads a vector of pairs from memory that is aligned only for one element, not for a float.
template <class S>
FUSEDRNN_INLINE Vec<float> load_pairs(const S* p) {
  return bit_cast<Vec<float>>(
      *reinterpret_cast<const typename VectorType<uint16_t>::unaligned*>(p));
}

// Loads one vector of a panel from W as it will be multiplied: `n` values of k from p on, in the
// compute type, or as pairs in the bits of a float.
template <class E, class S>
FUSEDRNN_INLINE auto load_operands(const S* p, int64_t n) {
  if constexpr (kTogether<E> == 1) {
    return load_n(p, n);
  } else {
    constexpr int64_t kMost = 2 * kLanes<float>;
    if (n >= kMost) return load_pairs(p);
    S pairs[kMost] = {};
    for (int64_t i = 0; i < n; ++i) pairs[i] = p[i];
    return load_pairs(pairs);
  }
}

// Some of the slots that a group has, which stand one after the other in a panel.
struct Slots {
  int first, count, all;
};
constexpr signed char kFirstGate[] = {0};

// Makes the gate panels of some slots, for the groups in `range`. A slot has the rows of gate
// `gate_of[slot]`.
template <class E, class S>
void make_gate_panels(const S* W, int64_t H, int64_t K, Slots slots, const signed char* gate_of,
                      Groups groups, Range range, E* panels) {
  using F = decltype(to_compute(S()));
  constexpr int64_t L = kLanes<F>, kPair = kTogether<E>;
  for (int64_t group = range.begin; group < range.end; ++group) {
    const int64_t first = groups.begin(group), nv = groups.size(group);
    const int64_t width = slots.count * nv * L * kPair;  // operands of kPair values of k
    E* const panel = panels + (first * slots.all + slots.first * nv) * L * round_up(K, kPair);
    for (int64_t k = 0; k < K; k += L * kPair) {
      const int64_t valid = div_up(K - k < L * kPair ? K - k : L * kPair, kPair);
      for (int g = 0; g < slots.count; ++g) {
        for (int64_t v = 0; v < nv; ++v) {
          const int64_t unit = (first + v) * L;
          const S* source = W + (gate_of[slots.first + g] * H + unit) * K + k;
          Vec<F> block[L];
          for (int64_t l = 0; l < L; ++l)
            block[l] = unit + l < H ? load_operands<E>(source + l * K, K - k) : Vec<F>{};
          transpose<F>(block);
          E* to = panel + k / kPair * width + (g * nv + v) * L * kPair;
          for (int64_t l = 0; l < valid; ++l) store(reinterpret_cast<F*>(to + l * width), block[l]);
        }
      }
    }
  }
}

// Stores n values of each of two rows as a vector of pairs; a missing second row counts as zeros.
FUSEDRNN_INLINE void store_pairs(BFloat16* to, const BFloat16* first, const BFloat16* second,
                                 int64_t n) {
  typedef VectorType<uint32_t>::type Bits;
  const Vec<float> a = load_n(first, n), b = second ? load_n(second, n) : Vec<float>{};
  // A bf16 value is the upper half of the bits of its float.
  const Bits pairs = bit_cast<Bits>(a) >> 16 | bit_cast<Bits>(b);
  store(reinterpret_cast<float*>(to), bit_cast<Vec<float>>(pairs));
}

// Makes the column panels of the groups in `range`, which are groups of W's N columns.
template <class E, class S>
void make_column_panels(const S* W, int64_t H, int64_t N, int gates, const signed char* gate_of,
                        Groups groups, Range range, E* panels) {
  constexpr int64_t L = kLanes<decltype(to_compute(S()))>, kPair = kTogether<E>;
  for (int64_t group = range.begin; group < range.end; ++group) {
    const int64_t first = groups.begin(group), nv = groups.size(group);
    E* to = panels + first * L * gates * round_up(H, kPair);
    for (int g = 0; g < gates; ++g) {
      const S* source = W + gate_of[g] * H * N + first * L;
      for (int64_t k = 0; k < H; k += kPair, source += N * kPair)
        for (int64_t v = 0; v < nv; ++v, to += L * kPair) {
          const int64_t n = N - (first + v) * L;
          if constexpr (kPair == 1)
            store(to, load_n(source + v * L, n));
          else
            store_pairs(to, source + v * L, k + 1 < H ? source + N + v * L : nullptr, n);
        }
    }
  }
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
