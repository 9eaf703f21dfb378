// Random masks for dropouts, on the CPU by all threads: torch draws them by one thread from a
// generator with a state, which takes longer than a layer's step. Here value i is a function of the
// seed and i: number i of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
// generators", 2014), of which each 64 bits make two values. So the number of threads does not
// matter, and the seed comes from torch's generator.
//
// Part of the op layer, like layer_ops.cpp.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/fork.h"
#include "environment.h"
#include "tensors.h"
#include "threads.h"

namespace fusedrnn {
namespace {

uint64_t split_mix(uint64_t seed, uint64_t i) {
  uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// The widest vectors of the processor at hand; the values are the same on every one.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FUSEDRNN_WIDEST __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#else
#define FUSEDRNN_WIDEST
#endif

constexpr int64_t kNumbers = 256;  // of 64 bits, which stay in the first cache

FUSEDRNN_WIDEST void fill_numbers(uint64_t seed, uint64_t first, uint64_t* to) {
  for (int64_t i = 0; i < kNumbers; ++i) to[i] = split_mix(seed, first + static_cast<uint64_t>(i));
}

// Words, unsigned integers as wide as the dtype, whose bits are those of the values.
template <class Word>
struct Choice {
  Word hit, miss;
  uint32_t last;  // numbers up to this hit

  // Without a branch, which nobody could predict.
  Word of(uint32_t number) const {
    const Word all = static_cast<Word>(-static_cast<int64_t>(number <= last));
    return static_cast<Word>(miss ^ ((hit ^ miss) & all));
  }
};

FUSEDRNN_WIDEST void choose(const uint32_t* numbers, Choice<uint16_t> c, int64_t n, uint16_t* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = c.of(numbers[i]);
}
FUSEDRNN_WIDEST void choose(const uint32_t* numbers, Choice<uint32_t> c, int64_t n, uint32_t* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = c.of(numbers[i]);
}
FUSEDRNN_WIDEST void choose(const uint32_t* numbers, Choice<uint64_t> c, int64_t n, uint64_t* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = c.of(numbers[i]);
}

template <class Word>
struct Mask {
  static constexpr int64_t kBlock = 1 << 14;  // values that a thread draws at once

  Word* to;
  int64_t n;
  uint64_t seed;
  Choice<Word> choice;

  static void draw(int64_t first_block, int64_t end_block, void* mask) {
    const Mask m = *static_cast<const Mask*>(mask);
    const int64_t end = std::min(end_block * kBlock, m.n);
    uint64_t both[kNumbers];
    uint32_t numbers[2 * kNumbers];
    for (int64_t i = first_block * kBlock; i < end; i += 2 * kNumbers) {
      fill_numbers(m.seed, static_cast<uint64_t>(i) / 2, both);
      for (int64_t k = 0; k < kNumbers; ++k) {
        numbers[2 * k] = static_cast<uint32_t>(both[k]);
        numbers[2 * k + 1] = static_cast<uint32_t>(both[k] >> 32);
      }
      choose(numbers, m.choice, std::min(2 * kNumbers, end - i), m.to + i);
    }
  }
};

template <class Word>
void draw(const Tensor& mask, int64_t seed, double probability, const Tensor& values) {
  Mask<Word> m{static_cast<Word*>(mask.data_ptr()), mask.numel(), static_cast<uint64_t>(seed), {}};
  const char* const bits = static_cast<const char*>(values.data_ptr());
  std::memcpy(&m.choice.hit, bits, sizeof(Word));
  std::memcpy(&m.choice.miss, bits + sizeof(Word), sizeof(Word));
  const int64_t below = std::llround(std::ldexp(probability, 32));
  if (below == 0) m.choice.hit = m.choice.miss;
  m.choice.last = static_cast<uint32_t>(below - 1);
  const int64_t blocks = div_up(m.n, Mask<Word>::kBlock);
  if (blocks <= 1 || cpu::is_forked())
    Mask<Word>::draw(0, blocks, &m);
  else
    parallel_for(blocks, Mask<Word>::draw, &m);
}

Tensor random_mask(const Tensor& seed, const Tensor& values, const std::vector<int64_t>& sizes,
                   double probability) {
  check_environment();
  FUSEDRNN_CHECK(seed.is_cpu() && seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
                 "seed: expected one int64 on the CPU, got ", dtype_name(seed), " of shape ",
                 to_string(sizes_of(seed)), " on ", device_of(seed));
  const Dtype dtype = dtype_of("values", values);
  FUSEDRNN_CHECK(
      values.is_cpu() && values.dim() == 1 && values.numel() == 2 && values.is_contiguous(),
      "values: expected two on the CPU, got shape ", to_string(sizes_of(values)), " on ",
      device_of(values));
  FUSEDRNN_CHECK(probability >= 0 && probability <= 1, "probability: expected 0 to 1, got ",
                 probability);
  int64_t n = 1;
  for (const int64_t size : sizes)
    FUSEDRNN_CHECK(size >= 0 && !__builtin_mul_overflow(n, size, &n) &&
                       n <= std::numeric_limits<int64_t>::max() / 16,
                   "sizes: expected those of a tensor, got ", to_string(sizes));
  data_of("values", values);
  int64_t number = 0;
  std::memcpy(&number, data_of("seed", seed), sizeof(number));
  Tensor mask = new_pooled("mask", sizes, values);
  switch (size_of(dtype)) {
    case 8: draw<uint64_t>(mask, number, probability, values); break;
    case 4: draw<uint32_t>(mask, number, probability, values); break;
    default: draw<uint16_t>(mask, number, probability, values); break;
  }
  return mask;
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY_FRAGMENT(fusedrnn, m) {
  m.def("random_mask(Tensor seed, Tensor values, SymInt[] sizes, float probability) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("random_mask", TORCH_BOX(&fusedrnn::random_mask));
}
