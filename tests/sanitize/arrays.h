// A random number generator, and arrays of random numbers.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "layer/problem.h"

namespace fusedrnn {

class Random {
 public:
  Random(uint64_t seed, uint64_t index) : state_(seed * 0x9e3779b97f4a7c15 + index) { next(); }
  uint64_t next() {  // splitmix64: the same everywhere
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  int64_t between(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(next() % static_cast<uint64_t>(most - least + 1));
  }
  bool chance(int percent) { return between(1, 100) <= percent; }

 private:
  uint64_t state_;
};

// An allocation of exactly these bytes: an access to one more is detected.
class Array {
 public:
  Array() = default;
  Array(int64_t bytes, int fill, int64_t offset = 0) : bytes_(bytes), offset_(offset) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, static_cast<std::size_t>(bytes + offset))) std::abort();
    std::memset(memory, fill, static_cast<std::size_t>(bytes + offset));
    memory_.reset(static_cast<char*>(memory));
  }
  char* data() const { return memory_ ? memory_.get() + offset_ : nullptr; }
  int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  int64_t bytes_ = 0, offset_ = 0;
  std::unique_ptr<char, Free> memory_;
};

struct Format {
  int bits, mantissa, bias;
};
inline Format format_of(Dtype dtype) {
  constexpr Format kFormats[] = {{64, 52, 1023}, {32, 23, 127}, {16, 7, 127}, {16, 10, 15}};
  return kFormats[static_cast<int>(dtype)];
}

// Random numbers of either sign from 2^-(below + 4) to 2^-below, aligned only as one element is.
inline Array random_array(Random& random, Dtype dtype, int64_t count, int below = 0) {
  const Format format = format_of(dtype);
  const int64_t size = size_of(dtype);
  Array array(count * size, 0, random.between(0, 3) * size);
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t mantissa = random.next() & ((uint64_t{1} << format.mantissa) - 1);
    const uint64_t exponent = static_cast<uint64_t>(format.bias - 1 - below - random.between(0, 3));
    const uint64_t bits = static_cast<uint64_t>(random.between(0, 1)) << (format.bits - 1) |
                          exponent << format.mantissa | mantissa;
    std::memcpy(array.data() + i * size, &bits, static_cast<std::size_t>(size));
  }
  return array;
}

// The first value that is NaN or infinite, or -1.
inline int64_t not_finite(const Array& array, Dtype dtype) {
  const Format format = format_of(dtype);
  const uint64_t exponent = (uint64_t{1} << (format.bits - format.mantissa - 1)) - 1;
  for (int64_t i = 0; i < array.bytes() / size_of(dtype); ++i) {
    uint64_t bits = 0;
    std::memcpy(&bits, array.data() + i * size_of(dtype), static_cast<std::size_t>(size_of(dtype)));
    if ((bits >> format.mantissa & exponent) == exponent) return i;
  }
  return -1;
}

}  // namespace fusedrnn
