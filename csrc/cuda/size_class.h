// Shapes of about the same size share what was measured of one of them: T, B and I count as the
// largest of their class. No CUDA in here.
#pragma once

#include <cstdint>

namespace fusedrnn::cuda {

// A power of two.
inline int64_t class_of_size(int64_t n) {
  int64_t power = 1;
  while (power < n && power < int64_t{1} << 62) power *= 2;
  return power;
}

// Sequences: teams have 8 of them or a multiple, which matters where there are few.
inline int64_t class_of_batch(int64_t B) { return B <= 64 ? (B + 7) / 8 * 8 : class_of_size(B); }

}  // namespace fusedrnn::cuda
