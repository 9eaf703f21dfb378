// Numbers that everything agrees on: padding, directions, sizes of dtypes. Device code includes
// this, too.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fusedrnn {

constexpr int64_t kHiddenPadding = 16;  // Hp is a multiple of this, whatever the vector width
constexpr int kMaxDirections = 2;

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr int64_t div_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

constexpr int64_t size_of(Dtype dtype) {
  return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
}

}  // namespace fusedrnn
