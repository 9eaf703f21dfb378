// How a product of fragments is made: on tensor cores from 16-bit values or tf32, or by ordinary
// multiply-adds in fp32. Sums are fp32 and lie in registers as mma.sync leaves them: with group =
// lane / 4 and t = lane % 4 a lane has sum[0..3] = (group, 2t), (group, 2t + 1), (group + 8, 2t),
// (group + 8, 2t + 1) of [16 rows][8 sequences].
//
// An arithmetic A is
//   A::E                 the storage type
//   A::Math              functions as exact as the products are (cells/cell.h)
//   A::Rows              a fragment of weights, as a lane multiplies with it
//   A::Columns           8 sequences of the right operand, as a lane multiplies with them
//   load(rows, memory)   from the 512 bytes of a fragment, where lane l left its words at 16 l
//   load(columns, ...)   from the operand, as deep as a fragment (layout: walk.h)
//   multiply(sum, rows, columns)
//   fetch<kTransposed, kPairs>(weights, at)
//                        a lane's four words of a fragment as they are in memory; at(row, k) is the
//                        index of a weight, or negative for a zero. Neighbours along k are
//                        neighbours in memory; along rows, if transposed. kPairs: of two neighbours
//                        both are there or neither, and both may be loaded at once (has_pairs)
//   arrange<kTransposed>(words)
//                        what the product wants of them; apart from fetch, so that the loads of
//                        several fragments are under way together
//   put(operand, k, column, value)
//                        one value of the right operand
//   Outgoing<n>          the same for 8 units by 8 sequences whose values the lanes of a warp have,
//                        n each: as words, and where they go
#pragma once

#include "cuda/types.cuh"
#include "ptx.cuh"
#include "walk.h"

namespace fusedrnn::cuda {

struct Words {
  uint32_t word[4];
};

// For results of 16 bits, and sums of products that were rounded to tf32: a few instructions
// without a branch. Where the result is a normal number, its relative error is below 2^-17, that of
// the two instructions included.
struct ShortMath : DeviceMath<float> {
  __device__ __forceinline__ static float sigmoid(float x) {
    return ptx::reciprocal(1 + ptx::exp2(-kLog2E * x));
  }
  __device__ __forceinline__ static float tanh(float x) {
    const float square = x * x;  // near 0 the difference below would have no digits left
    const float near = ::fmaf(x * square, ::fmaf(square, 2 / 15.0f, -1 / 3.0f), x);
    const float far = 1 - 2 * ptx::reciprocal(1 + ptx::exp2(2 * kLog2E * x));
    return ::fabsf(x) < 0.125f ? near : far;
  }

 private:
  static constexpr float kLog2E = 1.44269504f;
};

__device__ __forceinline__ unsigned lane_index() { return threadIdx.x % kLanes; }

// What all share: the layout of the right operand, 16 bytes of k by 8 sequences after each other.
template <class E_>
struct OperandOf {
  using E = E_;
  static constexpr bool kReadsPairs = false;
  __device__ __forceinline__ static bool has_pairs(const E*, int) { return false; }
  static constexpr int kPerCore = 16 / static_cast<int>(sizeof(E));  // of k

  __device__ __forceinline__ static E& at(char* operand, int k, int column) {
    char* const core = operand + k / kPerCore * kCoreBytes + column * 16;
    return reinterpret_cast<E*>(core)[k % kPerCore];
  }
};

// Words for the operand, of 8 units by 8 sequences: a lane has the values of unit `group` for the
// sequences 2t and 2t + 1, or for one of them, as its warp does for every second sequence. `at` is
// a word's place from the first unit's.
//
// Values of 4 bytes are words as they are.
template <class A, int n>
struct WideWords {
  static constexpr int kCount = n;      // of a lane
  static constexpr int kReceivers = 1;  // that a warp's words are for at the same time
  uint32_t word[n];
  int at[n];
  int receiver = 0;  // which of them this lane's are for

  __device__ __forceinline__ WideWords(const float (&value)[n], int odd) {
    const int group = static_cast<int>(lane_index()) / 4, t = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      word[i] = A::bits_of(value[i]);
      at[i] = group / 4 * kCoreBytes + (2 * t + (n == 1 ? odd : i)) * 16 + group % 4 * 4;
    }
  }
};
// Values of 2 bytes: those of two units make a word, so that a lane has units 2t and 2t + 1 of the
// sequence `group`. Where lanes have one value each, every second sequence would be empty; a lane
// of such a sequence has its neighbour's words, for another receiver.
template <class E, int n>
struct NarrowWords {
  static constexpr int kCount = 1, kReceivers = 3 - n;
  uint32_t word[1];
  int at[1];
  int receiver;

  __device__ __forceinline__ NarrowWords(const float (&value)[n], int odd) {
    const int group = static_cast<int>(lane_index()) / 4, t = lane_index() % 4;
    Pair<E> pair;
    pair.set(narrowed<E>(value[0]), narrowed<E>(value[n - 1]));
    word[0] = ptx::transpose(pair.bits);
    at[0] = (n == 1 ? group / 2 * 2 + odd : group) * 16 + t * 4;
    receiver = n == 1 ? group % 2 : 0;
  }
};

// Tensor cores: a fragment is as deep as two cores of the operand.
template <class E>
struct OnTensorCores : OperandOf<E> {
  struct Rows {
    uint32_t a[4];
  };
  struct Columns {
    uint32_t b[2];
  };

  __device__ __forceinline__ static void load(Rows& rows, const char* fragment) {
    const uint4 words = reinterpret_cast<const uint4*>(fragment)[lane_index()];
    rows.a[0] = words.x, rows.a[1] = words.y, rows.a[2] = words.z, rows.a[3] = words.w;
  }
  __device__ __forceinline__ static void hold(Rows& rows, const Words& words) {
#pragma unroll
    for (int i = 0; i < 4; ++i) rows.a[i] = words.word[i];
  }
  __device__ __forceinline__ static void load(Columns (&columns)[1], const char* operand) {
    ptx::ldmatrix(columns[0].b, operand + lane_index() % 16 * 16);
  }
  __device__ __forceinline__ static void load(Columns (&columns)[2], const char* operand) {
    uint32_t words[4];
    ptx::ldmatrix(words, operand + lane_index() * 16);
#pragma unroll
    for (int i = 0; i < 4; ++i) columns[i / 2].b[i % 2] = words[i];
  }
};

template <class E>
struct HalfArithmetic : OnTensorCores<E> {
  using Math = ShortMath;
  static constexpr bool kReadsPairs = true;
  template <bool kTransposed, bool kPairs, class At>
  __device__ __forceinline__ static Words fetch(const E* weights, const At& at) {
    const uint16_t* const values = reinterpret_cast<const uint16_t*>(weights);
    const int group = static_cast<int>(lane_index()) / 4, pair = lane_index() % 4 * 2;
    Words words;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = i % 2 * 8 + (kTransposed ? pair : group);
      const int k = i / 2 * 8 + (kTransposed ? group : pair);
      const int first = at(row, k);
      if constexpr (kPairs) {
        words.word[i] = first < 0 ? 0 : *reinterpret_cast<const uint32_t*>(values + first);
      } else {
        const int second = kTransposed ? at(row + 1, k) : at(row, k + 1);
        const uint32_t low = first < 0 ? 0 : values[first], high = second < 0 ? 0 : values[second];
        words.word[i] = low | high << 16;
      }
    }
    return words;
  }
  template <bool kTransposed>
  __device__ __forceinline__ static void arrange(Words& words) {
    if constexpr (kTransposed)
#pragma unroll
      for (uint32_t& word : words.word) word = ptx::transpose(word);
  }
  __device__ __forceinline__ static bool has_pairs(const E* weights, int row) {
    return row % 2 == 0 && reinterpret_cast<uintptr_t>(weights) % 4 == 0;
  }
  __device__ __forceinline__ static void put(char* operand, int k, int column, float value) {
    OperandOf<E>::at(operand, k, column) = narrowed<E>(value);
  }
  template <int n>
  using Outgoing = NarrowWords<E, n>;
};

struct Bf16 : HalfArithmetic<__nv_bfloat16> {
  static constexpr Arithmetic arithmetic = Arithmetic::bf16;
  static constexpr int kDepth = fragment_depth(arithmetic);
  static constexpr int kSince = 80;
  __device__ __forceinline__ static void multiply(float (&sum)[4], const Rows& rows,
                                                  const Columns& columns) {
    ptx::mma_m16n8k16_bf16(sum, rows.a, columns.b, sum);
  }
};

struct F16 : HalfArithmetic<__half> {
  static constexpr Arithmetic arithmetic = Arithmetic::f16;
  static constexpr int kDepth = fragment_depth(arithmetic);
  static constexpr int kSince = 75;
  __device__ __forceinline__ static void multiply(float (&sum)[4], const Rows& rows,
                                                  const Columns& columns) {
    ptx::mma_m16n8k16_f16(sum, rows.a, columns.b, sum);
  }
};

struct Tf32 : OnTensorCores<float> {
  using Math = ShortMath;
  static constexpr Arithmetic arithmetic = Arithmetic::tf32;
  static constexpr int kDepth = fragment_depth(arithmetic);
  static constexpr int kSince = 80;
  __device__ __forceinline__ static void multiply(float (&sum)[4], const Rows& rows,
                                                  const Columns& columns) {
    ptx::mma_m16n8k8_tf32(sum, rows.a, columns.b, sum);
  }
  template <bool kTransposed, bool kPairs, class At>
  __device__ __forceinline__ static Words fetch(const float* weights, const At& at) {
    const int group = static_cast<int>(lane_index()) / 4, t = lane_index() % 4;
    Words words;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int from = at(group + i % 2 * 8, t + i / 2 * 4);
      words.word[i] = from < 0 ? 0 : __float_as_uint(weights[from]);
    }
    return words;
  }
  template <bool kTransposed>
  __device__ __forceinline__ static void arrange(Words& words) {
#pragma unroll
    for (uint32_t& word : words.word) word = ptx::round_to_tf32(__uint_as_float(word));
  }
  __device__ __forceinline__ static uint32_t bits_of(float x) { return ptx::round_to_tf32(x); }
  __device__ __forceinline__ static void put(char* operand, int k, int column, float value) {
    at(operand, k, column) = __uint_as_float(bits_of(value));
  }
  template <int n>
  using Outgoing = WideWords<Tf32, n>;
};

// Ordinary multiply-adds. A fragment lies in memory as [2][16 rows][4 of k]: neighbouring rows are
// read without bank conflicts, each by four lanes at once.
struct F32 : OperandOf<float> {
  using Math = DeviceMath<float>;
  static constexpr Arithmetic arithmetic = Arithmetic::f32;
  static constexpr int kSince = 0;
  static constexpr int kDepth = fragment_depth(arithmetic);
  struct Rows {
    float a[2][kDepth];  // of rows group and group + 8
  };
  struct Columns {
    float b[2][kDepth];  // of sequences 2t and 2t + 1
  };

  __device__ __forceinline__ static void load(Rows& rows, const char* fragment) {
    const int group = static_cast<int>(lane_index()) / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      load4(reinterpret_cast<const float*>(fragment) + (i / 2 * 16 + i % 2 * 8 + group) * 4,
            rows.a[i % 2] + i / 2 * 4);
  }
  __device__ __forceinline__ static void hold(Rows&, const Words&) {}
  template <int N>
  __device__ __forceinline__ static void load(Columns (&columns)[N], const char* operand) {
    const int t = lane_index() % 4;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        load4(reinterpret_cast<const float*>(operand + (n * 2 + i / 2) * kCoreBytes +
                                             (2 * t + i % 2) * 16),
              columns[n].b[i % 2] + i / 2 * 4);
  }
  __device__ __forceinline__ static void multiply(float (&sum)[4], const Rows& rows,
                                                  const Columns& columns) {
#pragma unroll
    for (int k = 0; k < kDepth; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] = fmaf(rows.a[i / 2][k], columns.b[i % 2][k], sum[i]);
  }
  template <bool kTransposed, bool kPairs, class At>
  __device__ __forceinline__ static Words fetch(const float* weights, const At& at) {
    const int row = static_cast<int>(lane_index()) % 16, k = lane_index() / 16 * 4;
    Words words;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int from = at(row, k + i);
      words.word[i] = from < 0 ? 0 : __float_as_uint(weights[from]);
    }
    return words;
  }
  template <bool kTransposed>
  __device__ __forceinline__ static void arrange(Words&) {}
  __device__ __forceinline__ static uint32_t bits_of(float x) { return __float_as_uint(x); }
  __device__ __forceinline__ static void put(char* operand, int k, int column, float value) {
    at(operand, k, column) = value;
  }
  template <int n>
  using Outgoing = WideWords<F32, n>;

 private:
  __device__ __forceinline__ static void load4(const float* from, float* to) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  }
};

__device__ __forceinline__ void store_words(char* fragment, const Words& words) {
  reinterpret_cast<uint4*>(fragment)[lane_index()] = {words.word[0], words.word[1], words.word[2],
                                                      words.word[3]};
}

// A warp's weights: `kHeldDepth` by `kTiles` fragments in registers, the rest in memory in the
// order in which they are used. Along the depth (k) everything is counted in fragments.
template <class A, int kTiles, int kHeldDepth>
struct HeldWeights {
  typename A::Rows rows[kHeldDepth ? kHeldDepth : 1][kTiles];

  // Fetches what is held of `depth` by `tiles` fragments, and writes the rest to memory.
  // fetch(k, tile) gives a fragment's words. Returns the end of what was written.
  template <bool kTransposed, bool kToRegisters, class Fetch>
  __device__ __forceinline__ char* load(const Fetch& fetch, char* stored, int depth, int tiles) {
    // Two k at a time: the loads of one would wait too often, those of all take too many registers.
    if constexpr (kToRegisters) {
#pragma unroll
      for (int first = 0; first < kHeldDepth; first += 2) {
        Words words[2][kTiles];
#pragma unroll
        for (int k = first; k < first + 2 && k < kHeldDepth; ++k)
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile)
            if (k < depth && tile < tiles) words[k - first][tile] = fetch(k, tile);
#pragma unroll
        for (int k = first; k < first + 2 && k < kHeldDepth; ++k) {
          if (k >= depth) continue;
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
            A::template arrange<kTransposed>(words[k - first][tile]);
            A::hold(rows[k][tile], words[k - first][tile]);
          }
        }
        __syncwarp();
      }
    }
#pragma unroll 1
    for (int k = kToRegisters ? kHeldDepth : 0; k < depth; ++k) {
      Words words[kTiles];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        if (tile < tiles) words[tile] = fetch(k, tile);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        if (tile >= tiles) continue;
        A::template arrange<kTransposed>(words[tile]);
        store_words(stored, words[tile]);
        stored += kFragmentBytes;
      }
    }
    return stored;
  }

  // sum[tile] = weights times operand over the depth. The first `tiles` of kTiles count. With few
  // tiles even and odd k are summed apart: a product need not wait for the one before.
  template <bool kFromRegisters>
  __device__ __forceinline__ void multiply(float (&sum)[kTiles][4], const char* stored,
                                           const char* operand, int depth, int tiles) const {
    constexpr int kBytes = 2 * kCoreBytes;
    constexpr bool kApart = kTiles < 3;
    float apart[kTiles][4];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[tile][i] = apart[tile][i] = 0;
    float (&odd)[kTiles][4] = kApart ? apart : sum;

    const auto add = [&](float (&to)[kTiles][4], const typename A::Rows(*held)[kTiles],
                         const typename A::Columns& columns) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        if (tile >= tiles) continue;
        if (held) {
          A::multiply(to[tile], (*held)[tile], columns);
        } else {
          typename A::Rows rows;
          A::load(rows, stored + tile * kFragmentBytes);
          A::multiply(to[tile], rows, columns);
        }
      }
      if (!held) stored += tiles * kFragmentBytes;
    };

    constexpr int kHeld = kFromRegisters ? kHeldDepth : 0;
#pragma unroll
    for (int k = 0; k < kHeld; k += 2) {
      if (k + 1 < kHeld && k + 1 < depth) {
        typename A::Columns columns[2];
        A::load(columns, operand + k * kBytes);
        add(sum, &rows[k], columns[0]);
        add(odd, &rows[k + 1 < kHeld ? k + 1 : k], columns[1]);
      } else if (k < depth) {
        typename A::Columns columns[1];
        A::load(columns, operand + k * kBytes);
        add(sum, &rows[k], columns[0]);
      }
    }
    int k = kHeld;
    for (; k + 1 < depth; k += 2) {
      typename A::Columns columns[2];
      A::load(columns, operand + k * kBytes);
      add(sum, nullptr, columns[0]);
      add(odd, nullptr, columns[1]);
    }
    if (k < depth) {
      typename A::Columns columns[1];
      A::load(columns, operand + k * kBytes);
      add(sum, nullptr, columns[0]);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (kApart) sum[tile][i] += apart[tile][i];
  }

  // This one knows the depth when it is compiled, and multiplies all tiles with several columns.
  // The first kFromRegisters k, all that are held or none, are in registers. Nothing branches; the
  // operand is loaded one or two pairs of k, and a fragment in memory one product, before they are
  // used.
  template <int kFromRegisters, int kDepth, int kColumns>
  __device__ __forceinline__ void multiply(float (&sum)[kColumns][kTiles][4], const char* stored,
                                           const char* operand, int column_bytes) const {
    constexpr int kBytes = 2 * kCoreBytes, kPairs = (kDepth + 1) / 2;
    constexpr int kStored = (kDepth - kFromRegisters) * kTiles;  // fragments
    // Where some are in memory registers are scarce, and as many warps as there can be take turns.
    constexpr bool kApart = kTiles < 3 && kStored == 0;
    constexpr int kAhead = kStored > 0 ? 1 : 2;
    float apart[kColumns][kTiles][4];
#pragma unroll
    for (int column = 0; column < kColumns; ++column)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[column][tile][i] = apart[column][tile][i] = 0;

    typename A::Columns columns[kPairs][kColumns][2];
    typename A::Rows memory[kStored > 0 ? kStored : 1];
    const auto load_columns = [&](int pair) {
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        const char* const from = operand + column * column_bytes + 2 * pair * kBytes;
        if (2 * pair + 1 < kDepth) {
          A::load(columns[pair][column], from);
        } else {
          typename A::Columns one[1];
          A::load(one, from);
          columns[pair][column][0] = one[0];
        }
      }
    };
    const auto load_fragment = [&](int i) {
      if (i < kStored) A::load(memory[i], stored + i * kFragmentBytes);
    };
#pragma unroll
    for (int pair = 0; pair < kAhead && pair < kPairs; ++pair) load_columns(pair);
    load_fragment(0);
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      if (k % 2 == 0 && k / 2 + kAhead < kPairs) load_columns(k / 2 + kAhead);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const int i = (k - kFromRegisters) * kTiles + tile;
        if (i >= 0) load_fragment(i + 1);
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
          float (&to)[4] = (kApart && k % 2 ? apart : sum)[column][tile];
          A::multiply(to, i < 0 ? rows[k < kFromRegisters ? k : 0][tile] : memory[i < 0 ? 0 : i],
                      columns[k / 2][column][k % 2]);
        }
      }
    }
    if constexpr (kApart)
#pragma unroll
      for (int column = 0; column < kColumns; ++column)
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[column][tile][i] += apart[column][tile][i];
  }
};

}  // namespace fusedrnn::cuda
