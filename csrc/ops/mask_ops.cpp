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

// Word: an unsigned integer as wide as the dtype, whose bits the values are copied as.
template <class Word>
struct Mask {
  static constexpr int64_t kBlock = 1 << 14;  // values that a thread draws at once

  Word* to;
  int64_t n;
  uint64_t seed, below;  // numbers of 32 bits below this: the value is `hit`
  Word hit, miss;

  static void draw(int64_t first_block, int64_t end_block, void* mask) {
    const Mask m = *static_cast<const Mask*>(mask);
    const int64_t end = std::min(end_block * kBlock, m.n);
    for (int64_t i = first_block * kBlock; i < end; i += 2) {
      const uint64_t both = split_mix(m.seed, static_cast<uint64_t>(i) / 2);
      m.to[i] = m.value(both & 0xffffffff);
      if (i + 1 < end) m.to[i + 1] = m.value(both >> 32);
    }
  }
  // Without a branch, which nobody could predict.
  Word value(uint64_t number) const {
    const Word all = static_cast<Word>(-static_cast<int64_t>(number < below));
    return static_cast<Word>(miss ^ ((hit ^ miss) & all));
  }
};

template <class Word>
void draw(const Tensor& mask, int64_t seed, double probability, const Tensor& values) {
  Mask<Word> m{
      static_cast<Word*>(mask.data_ptr()), mask.numel(), static_cast<uint64_t>(seed), 0, 0, 0};
  m.below = static_cast<uint64_t>(std::llround(std::ldexp(probability, 32)));
  const char* const bits = static_cast<const char*>(values.data_ptr());
  std::memcpy(&m.hit, bits, sizeof(Word));
  std::memcpy(&m.miss, bits + sizeof(Word), sizeof(Word));
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
