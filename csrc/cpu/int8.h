// Exact products of int8, and the quantising of rows of activations.
//
// An activation is kept as the unsigned byte q + 128: VNNI's vpdpbusd multiplies four unsigned
// bytes by four signed weights at once. The excess, 128 times the sum of the weights, is subtracted
// up front: it is where each sum starts (`starts`, see layer/quantized.h). Without VNNI, bytes are
// widened to int16, and pmaddwd adds two products in 32 bits. Nothing saturates and nothing wraps,
// so every instruction set has the same sums.
#pragma once

#include "layer/quantized.h"
#include "vec.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

using Sums = Vec<int32_t>;

FUSEDRNN_INLINE Sums load_sums(const int32_t* p) {
  return *reinterpret_cast<const VectorType<int32_t>::unaligned*>(p);
}

FUSEDRNN_INLINE Sums splat_quad(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof(four));
  return four - Sums{};
}

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)

struct QuadsOfUnits {  // four weights of each unit of a vector
  Sums w;
  FUSEDRNN_INLINE explicit QuadsOfUnits(const int8_t* p)
      : w(load_sums(reinterpret_cast<const int32_t*>(p))) {}
};
struct QuadOfRow {  // four activations, for all lanes
  Sums x;
  FUSEDRNN_INLINE explicit QuadOfRow(const uint8_t* p) : x(splat_quad(p)) {}
};
FUSEDRNN_INLINE Sums add_products(Sums sums, const QuadOfRow& x, const QuadsOfUnits& w) {
#if defined(__AVX512VNNI__)
  return bit_cast<Sums>(
      _mm512_dpbusd_epi32(bit_cast<__m512i>(sums), bit_cast<__m512i>(x.x), bit_cast<__m512i>(w.w)));
#else
  return bit_cast<Sums>(_mm256_dpbusd_avx_epi32(bit_cast<__m256i>(sums), bit_cast<__m256i>(x.x),
                                                bit_cast<__m256i>(w.w)));
#endif
}

#else

using Words = Vec<int16_t>;

#if defined(__SSE2__)
FUSEDRNN_INLINE Sums add_pairs(Sums sums, Words x, Words w) {
#if defined(__AVX512BW__)
  return sums + bit_cast<Sums>(_mm512_madd_epi16(bit_cast<__m512i>(x), bit_cast<__m512i>(w)));
#elif defined(__AVX2__)
  return sums + bit_cast<Sums>(_mm256_madd_epi16(bit_cast<__m256i>(x), bit_cast<__m256i>(w)));
#else
  return sums + bit_cast<Sums>(_mm_madd_epi16(bit_cast<__m128i>(x), bit_cast<__m128i>(w)));
#endif
}
#else
FUSEDRNN_INLINE Sums add_pairs(Sums sums, Words x, Words w) {
  const Sums xs = bit_cast<Sums>(x), ws = bit_cast<Sums>(w);
  return sums + (xs >> 16) * (ws >> 16) + (xs << 16 >> 16) * (ws << 16 >> 16);
}
#endif

// Widened: values 0 and 2 of the quad in `even`, 1 and 3 in `odd`.
struct QuadsOfUnits {
  Words even, odd;
  FUSEDRNN_INLINE explicit QuadsOfUnits(const int8_t* p) {
    const Words bytes = bit_cast<Words>(load_sums(reinterpret_cast<const int32_t*>(p)));
    even = bytes << 8 >> 8;
    odd = bytes >> 8;
  }
};
struct QuadOfRow {
  Words even, odd;
  FUSEDRNN_INLINE explicit QuadOfRow(const uint8_t* p) {
    const Sums bytes = splat_quad(p);
    even = bit_cast<Words>(bytes & 0x00ff00ff);
    odd = bit_cast<Words>(bytes >> 8 & 0x00ff00ff);
  }
};
FUSEDRNN_INLINE Sums add_products(Sums sums, const QuadOfRow& x, const QuadsOfUnits& w) {
  return add_pairs(add_pairs(sums, x.even, w.even), x.odd, w.odd);
}

#endif

// To the nearest integer, ties to even.
FUSEDRNN_INLINE Sums round_to_sums(Vec<float> x) {
#if defined(__AVX512F__)
  return bit_cast<Sums>(_mm512_maskz_cvtps_epi32(0xffff, x));
#elif defined(__AVX2__)
  return bit_cast<Sums>(_mm256_cvtps_epi32(x));
#elif defined(__SSE2__)
  return bit_cast<Sums>(_mm_cvtps_epi32(x));
#else
  Sums whole;
  for (int l = 0; l < kLanes<float>; ++l) whole[l] = static_cast<int32_t>(__builtin_rintf(x[l]));
  return whole;
#endif
}

// The stride of quantised rows of n values, in bytes: room for what quantize_row writes, and not a
// power of two.
constexpr int64_t quantized_row(int64_t n) { return round_up(n, 64) + 64; }

// Quantises n values (layer/quantized.h has the formula) and returns their scale. A row that holds
// a NaN or an infinity has the scale NaN, so that everything computed from it is NaN.
FUSEDRNN_INLINE float quantize_row(const float* from, int64_t n, uint8_t* to) {
  constexpr int64_t L = kLanes<float>;
  typedef VectorType<uint8_t, L>::unaligned Bytes;
  // Compared as integers, magnitudes have the order of their values, with infinity and NaN on top.
  Sums most = 0x0d800000 - Sums{};  // 2^-100
  for (int64_t i = 0; i < n; i += L) {
    const Sums magnitude = bit_cast<Sums>(load_n(from + i, n - i)) & 0x7fffffff;
    most = magnitude > most ? magnitude : most;
  }
  int32_t bits = most[0];
#pragma GCC unroll 16
  for (int l = 1; l < L; ++l) bits = most[l] > bits ? most[l] : bits;
  const bool finite = bits < 0x7f800000;
  const float largest = finite ? bit_cast<float>(bits) : 1.0f;
  const float inverse = 127 / largest;
  for (int64_t i = 0; i < n; i += L) {
    const Sums q = round_to_sums(load_n(from + i, n - i) * inverse) + 128;
    *reinterpret_cast<Bytes*>(to + i) = __builtin_convertvector(q, Bytes);
  }
  return finite ? largest / 127 : __builtin_nanf("");
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
