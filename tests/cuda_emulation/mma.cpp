// Tensor cores: m16n8k16 and m16n8k8 products and the loads of their fragments, with the layout of
// lanes that csrc/cuda/team/ptx.cuh draws. The 32 lanes meet; the last one computes for all.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime.h"

namespace emulation {
namespace {

struct Fragments {
  uint32_t a[4], b[2];
  float c[4];
};

float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
float half_of(uint32_t pair, bool upper, Operand operand) {
  const auto bits = uint16_t(upper ? pair >> 16 : pair);
  return operand == Operand::bf16 ? __bfloat162float(__ushort_as_bfloat16(bits))
                                  : __half2float(__ushort_as_half(bits));
}

// A tensor core forms products exactly; how it adds them is its own. Here: the sum, rounded once,
// or terms cut to 24 + 2 bits below the largest and a result rounded towards zero.
float sum_of(const double* products, int count, float c) {
  double sum = c;
  if (!options().truncated_mma) {
    for (int k = 0; k < count; ++k) sum += products[k];
    return float(sum);
  }
  double largest = std::abs(sum);
  for (int k = 0; k < count; ++k) largest = std::max(largest, std::abs(products[k]));
  if (!(largest > 0 && largest < HUGE_VAL)) {
    for (int k = 0; k < count; ++k) sum += products[k];
    return float(sum);
  }
  const double unit = std::ldexp(1.0, std::ilogb(largest) - 25);
  sum = std::trunc(sum / unit);
  for (int k = 0; k < count; ++k) sum += std::trunc(products[k] / unit);
  sum *= unit;
  const float rounded = float(sum);
  return std::abs(double(rounded)) > std::abs(sum) ? std::nextafter(rounded, 0.0f) : rounded;
}

template <Operand operand>
void multiply(Slot* slots) {
  constexpr int depth = operand == Operand::tf32 ? 8 : 16;
  float a[16][depth], b[8][depth], c[16][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    Fragments in;
    memcpy(&in, slots[lane].bytes, sizeof in);
    const unsigned group = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = group + i % 2 * 8;
      if constexpr (operand == Operand::tf32) {
        a[row][t + i / 2 * 4] = as_float(in.a[i] & ~0x1fffu);
        if (i < 2) b[group][t + i * 4] = as_float(in.b[i] & ~0x1fffu);
      } else {
        for (unsigned upper = 0; upper < 2; ++upper) {
          a[row][t * 2 + upper + i / 2 * 8] = half_of(in.a[i], upper, operand);
          if (i < 2) b[group][t * 2 + upper + i * 8] = half_of(in.b[i], upper, operand);
        }
      }
      c[group + i / 2 * 8][t * 2 + i % 2] = in.c[i];
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      double products[depth];
      for (int k = 0; k < depth; ++k) products[k] = double(a[row][k]) * double(b[column][k]);
      c[row][column] = sum_of(products, depth, c[row][column]);
    }
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    float d[4];
    for (unsigned i = 0; i < 4; ++i) d[i] = c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    memcpy(slots[lane].bytes, d, sizeof d);
  }
}

}  // namespace

void mma(Operand operand, float* d, const uint32_t* a, const uint32_t* b, const float* c,
         Where where) {
  need_converged_warp("mma", where);
  const Combine combine = operand == Operand::bf16  ? multiply<Operand::bf16>
                          : operand == Operand::f16 ? multiply<Operand::f16>
                                                    : multiply<Operand::tf32>;
  const Fragments in{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
  const Slot* slots = meet(~0u, "mma", &in, sizeof in, where, combine);
  memcpy(d, slots[builtins.lane].bytes, 4 * sizeof(float));
}

void ldmatrix(unsigned matrices, uint32_t* r, const void* row, Where where) {
  need_converged_warp("ldmatrix", where);
  const unsigned lane = builtins.lane;
  if (lane < 8 * matrices) {
    if (reinterpret_cast<uintptr_t>(row) % 16) {
      fail(where, "ldmatrix: a row is not aligned to 16 bytes");
    }
    race::access(row, 16, false, race::site(where));
  }
  const Slot* slots = meet(~0u, "ldmatrix", &row, sizeof row, where);
  for (unsigned m = 0; m < matrices; ++m) {
    const char* address;
    memcpy(&address, slots[m * 8 + lane / 4].bytes, sizeof address);
    memcpy(&r[m], address + lane % 4 * sizeof r[m], sizeof r[m]);
  }
}

uint32_t transpose(uint32_t pair, Where where) {
  need_converged_warp("movmatrix", where);
  const Slot* slots = meet(~0u, "movmatrix", &pair, sizeof pair, where);
  uint16_t values[2];
  for (unsigned i = 0; i < 2; ++i) {
    const unsigned row = builtins.lane % 4 * 2 + i, column = builtins.lane / 4;
    memcpy(&values[i], slots[row * 4 + column / 2].bytes + column % 2 * 2, 2);
  }
  return values[0] | uint32_t(values[1]) << 16;
}

uint32_t round_to_tf32(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (std::isnan(x)) return 0x7fffffff;
  if (std::isinf(x)) return bits;
  return (bits + 0x1000) & ~0x1fffu;  // may carry into the exponent, as far as infinity
}

}  // namespace emulation
