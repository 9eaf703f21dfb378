// Vectors of units: GCC/Clang vector types as wide as the instruction set that this translation
// unit is compiled for, with loads and stores that convert from the storage types (bf16, fp16),
// and the transcendental functions of the cells.
//
// Everything here lives in a namespace named after the instruction set (FUSEDRNN_ISA), so that the
// versions compiled for different processors never meet in the linker.
//
// Accuracy: e^x = 2^n e^r with n an integer and |r| <= ln(2)/2. n ln(2) is subtracted from x in two
// pieces, the first one exact. e^r = 1 + r g(r), with g from Remez' exchange algorithm. tanh is
// formed from e^x - 1, which keeps its relative accuracy near zero. Both sigmoid and tanh are
// within a few ulp over the whole range.
#pragma once

#include <cstdint>
#include <type_traits>

#include "layer/dtype.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

#define FUSEDRNN_INLINE __attribute__((always_inline)) inline

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kAccumulators = 24;  // of 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kAccumulators = 12;  // of 16
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kAccumulators = 24;
#else
constexpr int kVectorBytes = 16, kAccumulators = 12;
#endif

template <class T, int kBytes = kVectorBytes>
struct VectorType {
  typedef T type __attribute__((vector_size(kBytes)));
  typedef T unaligned __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
};
template <class F>
using Vec = typename VectorType<F>::type;
template <class F>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(F));
template <class F>
using Bits = std::conditional_t<sizeof(F) == 4, int32_t, int64_t>;

// The storage types of half precision: only their bits.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// What a tensor of a dtype holds, and what its values are computed in.
template <Dtype dtype>
using StorageOf = std::conditional_t<
    dtype == Dtype::f64, double,
    std::conditional_t<dtype == Dtype::f32, float,
                       std::conditional_t<dtype == Dtype::bf16, BFloat16, Half>>>;
template <Dtype dtype>
using ComputeOf = std::conditional_t<dtype == Dtype::f64, double, float>;

template <class F>
FUSEDRNN_INLINE Vec<F> splat(F x) {
  return x - Vec<F>{};
}

// ---- scalar conversions -------------------------------------------------------------------------

template <class To, class From>
FUSEDRNN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

FUSEDRNN_INLINE float to_compute(float x) { return x; }
FUSEDRNN_INLINE double to_compute(double x) { return x; }
FUSEDRNN_INLINE float to_compute(BFloat16 x) {
  return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}
FUSEDRNN_INLINE float to_compute(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Shifted into float's place, the exponent is 112 too small: one exact multiplication fixes it.
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f));
}

FUSEDRNN_INLINE void to_storage(float x, float& out) { out = x; }
FUSEDRNN_INLINE void to_storage(double x, double& out) { out = x; }
FUSEDRNN_INLINE void to_storage(float x, BFloat16& out) {
  const uint32_t u = bit_cast<uint32_t>(x);
  out.bits =
      static_cast<uint16_t>(x != x ? (u >> 16 | 0x40u) : (u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
FUSEDRNN_INLINE void to_storage(float x, Half& out) {
  const uint32_t u = bit_cast<uint32_t>(x), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
  uint32_t bits;
  if (magnitude > 0x7f800000u) {
    bits = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more
    bits = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 aligns and rounds
    bits = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    bits = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | bits);
}

// ---- loads and stores ---------------------------------------------------------------------------

FUSEDRNN_INLINE Vec<float> load(const float* p) {
  return *reinterpret_cast<const VectorType<float>::unaligned*>(p);
}
FUSEDRNN_INLINE Vec<double> load(const double* p) {
  return *reinterpret_cast<const VectorType<double>::unaligned*>(p);
}
FUSEDRNN_INLINE void store(float* p, Vec<float> v) {
  *reinterpret_cast<VectorType<float>::unaligned*>(p) = v;
}
FUSEDRNN_INLINE void store(double* p, Vec<double> v) {
  *reinterpret_cast<VectorType<double>::unaligned*>(p) = v;
}

FUSEDRNN_INLINE Vec<float> load(const BFloat16* p) {
  typedef VectorType<uint16_t, kVectorBytes / 2>::unaligned Narrow;
  typedef VectorType<uint32_t>::type Wide;
  const Wide bits = __builtin_convertvector(*reinterpret_cast<const Narrow*>(p), Wide) << 16;
  return bit_cast<Vec<float>>(bits);
}
FUSEDRNN_INLINE void store(BFloat16* p, Vec<float> v) {
  typedef VectorType<uint16_t, kVectorBytes / 2>::unaligned Narrow;
#if defined(__AVX512BF16__)
  *reinterpret_cast<Narrow*>(p) = (Narrow)_mm512_cvtneps_pbh(v);
  return;
#endif
  typedef VectorType<uint32_t>::type Wide;
  const Wide u = bit_cast<Wide>(v);
  const Wide rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16, nan = u >> 16 | 0x40u;
  *reinterpret_cast<Narrow*>(p) = __builtin_convertvector(v != v ? nan : rounded, Narrow);
}

FUSEDRNN_INLINE Vec<float> load(const Half* p) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec<float> v;
  for (int l = 0; l < kLanes<float>; ++l) v[l] = to_compute(p[l]);
  return v;
#endif
}
FUSEDRNN_INLINE void store(Half* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int l = 0; l < kLanes<float>; ++l) to_storage(v[l], p[l]);
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
template <class F>
FUSEDRNN_INLINE __m256i first_lanes(int64_t n) {  // all bits set in the first n lanes
  if constexpr (sizeof(F) == 4)
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  else
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
#endif

// The first n lanes (all if n is larger); the others read as zero and are not written.
template <class S>
FUSEDRNN_INLINE auto load_n(const S* p, int64_t n) -> decltype(load(p)) {
  using F = decltype(to_compute(*p));
  if (n >= kLanes<F>) return load(p);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, float>)
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  if constexpr (std::is_same_v<S, double>)
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
#endif
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (std::is_same_v<S, float>) return _mm256_maskload_ps(p, first_lanes<float>(n));
  if constexpr (std::is_same_v<S, double>) return _mm256_maskload_pd(p, first_lanes<double>(n));
#endif
  S padded[kLanes<F>] = {};
  for (int l = 0; l < kLanes<F>; ++l)
    if (l < n) padded[l] = p[l];
  return load(padded);
}
template <class S, class V>
FUSEDRNN_INLINE void store_n(S* p, V v, int64_t n) {
  using F = decltype(to_compute(*p));
  if (n >= kLanes<F>) return store(p, v);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, float>)
    return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
  if constexpr (std::is_same_v<S, double>)
    return _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), v);
#endif
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (std::is_same_v<S, float>) return _mm256_maskstore_ps(p, first_lanes<float>(n), v);
  if constexpr (std::is_same_v<S, double>) return _mm256_maskstore_pd(p, first_lanes<double>(n), v);
#endif
  S padded[kLanes<F>];
  store(padded, v);
  for (int l = 0; l < kLanes<F>; ++l)
    if (l < n) p[l] = padded[l];
}

// Copies n elements, converting between storage and compute types. `convert_inline` is for a few at
// a time. Everything else calls one function: its code is long where the processor has no
// instruction that converts.
template <class To, class From>
__attribute__((noinline)) void convert_rest(To* to, const From* from, int64_t n) {  // n < lanes
  store_n(to, load_n(from, n), n);
}
template <class To, class From>
FUSEDRNN_INLINE void convert_inline(To* to, const From* from, int64_t n) {
  constexpr int64_t L = kLanes<decltype(to_compute(*from))>;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(to + i, load(from + i));
  if (i < n) convert_rest(to + i, from + i, n - i);
}
template <class To, class From>
__attribute__((noinline)) void convert(To* to, const From* from, int64_t n) {
  convert_inline(to, from, n);
}

template <class F>
FUSEDRNN_INLINE F horizontal_sum(Vec<F> v) {
  // Pairwise, in a fixed order.
  F lane[kLanes<F>];
  store(lane, v);
  for (int width = kLanes<F> / 2; width; width /= 2)
    for (int l = 0; l < width; ++l) lane[l] += lane[l + width];
  return lane[0];
}

// ---- functions of the cells ---------------------------------------------------------------------
//
// AVX-512 intrinsics are used in their zero-masked form with a full mask: that is the same
// instruction, without the undefined value that makes GCC warn.

template <class F>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float log2e = 1.44269504f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float rounder = 0x1.8p23f;  // adding it rounds to an integer
  static constexpr float exp_limit = 87.0f;    // beyond, sigmoid is at the end of its range
  static constexpr float tanh_limit = 9.02f;   // beyond, tanh rounds to 1
  static constexpr int mantissa = 23, bias = 127;
  // Both are g. `exp` has the least error in e^r, and `expm1` the least in (e^r - 1) / r.
  static constexpr float exp[] = {1.0000000494641417f, 0.4999913413634155f, 0.1666635911650877f,
                                  0.041899501142022259f, 0.0083793826415228957f};
  static constexpr float expm1[] = {1.0f,
                                    0.50000000807561962f,
                                    0.16666505172587271f,
                                    0.041666240956211731f,
                                    0.0083691576524065782f,
                                    0.0013948564724073450f};
};
template <>
struct ExpConstants<double> {
  static constexpr double log2e = 1.4426950408889634;
  static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 1.9082149292705877e-10;
  static constexpr double rounder = 0x1.8p52, exp_limit = 708.0, tanh_limit = 19.1;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double expm1[] = {
      1.0,
      0.5,
      0.16666666666666680,
      0.04166666666666670749,
      0.008333333333319589917,
      0.001388888888886477594,
      0.0001984126989007555171,
      0.00002480158736362713004,
      2.755724088811501713e-6,
      2.755724065910690224e-7,
      2.511004890128838136e-8,
      2.092498318090316435e-9,
  };
  static constexpr auto& exp = expm1;
};

// A NaN in x stays.
template <class F>
FUSEDRNN_INLINE Vec<F> minimum(Vec<F> x, Vec<F> limit) {
#if defined(__AVX512F__)
  if constexpr (sizeof(F) == 4)
    return _mm512_maskz_min_ps(0xffff, limit, x);
  else
    return _mm512_maskz_min_pd(0xff, limit, x);
#elif defined(__AVX2__)
  if constexpr (sizeof(F) == 4)
    return _mm256_min_ps(limit, x);
  else
    return _mm256_min_pd(limit, x);
#else
  return limit < x ? limit : x;
#endif
}
template <class F>
FUSEDRNN_INLINE Vec<F> minimum(Vec<F> x, F limit) {
  return minimum<F>(x, splat(limit));
}
template <class F>
FUSEDRNN_INLINE Vec<F> maximum(Vec<F> x, Vec<F> limit) {
#if defined(__AVX512F__)
  if constexpr (sizeof(F) == 4)
    return _mm512_maskz_max_ps(0xffff, limit, x);
  else
    return _mm512_maskz_max_pd(0xff, limit, x);
#elif defined(__AVX2__)
  if constexpr (sizeof(F) == 4)
    return _mm256_max_ps(limit, x);
  else
    return _mm256_max_pd(limit, x);
#else
  return limit > x ? limit : x;
#endif
}
template <class F>
FUSEDRNN_INLINE Vec<F> maximum(Vec<F> x, F limit) {
  return maximum<F>(x, splat(limit));
}

// a * b + c, rounded once where the instruction set can. Everything here asks for it by name: what
// a compiler contracts by itself depends on its options, and bits must not.
template <class F>
FUSEDRNN_INLINE Vec<F> multiply_add(Vec<F> a, Vec<F> b, Vec<F> c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(F) == 4)
    return _mm512_fmadd_ps(a, b, c);
  else
    return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
  if constexpr (sizeof(F) == 4)
    return _mm256_fmadd_ps(a, b, c);
  else
    return _mm256_fmadd_pd(a, b, c);
#elif defined(__aarch64__)
  if constexpr (sizeof(F) == 4)
    return vfmaq_f32(c, a, b);
  else
    return vfmaq_f64(c, a, b);
#else
  return a * b + c;
#endif
}
template <class F>
FUSEDRNN_INLINE Vec<F> multiply_add(Vec<F> a, F b, Vec<F> c) {
  return multiply_add<F>(a, splat(b), c);
}

// x = n ln 2 + r, n an integer and |r| <= ln(2)/2. |x| must be below 1000.
template <class F>
struct Reduced {
  typedef typename VectorType<Bits<F>>::type BitsVec;
  Vec<F> r;
  Vec<F> whole;  // n
  BitsVec n;     // where a floating-point number has its exponent

  FUSEDRNN_INLINE explicit Reduced(Vec<F> x) {
    using K = ExpConstants<F>;
    const Vec<F> shifted = multiply_add<F>(x, K::log2e, splat(K::rounder));
    whole = shifted - K::rounder;
    r = multiply_add<F>(whole, -K::ln2_low, multiply_add<F>(whole, -K::ln2_high, x));
    n = bit_cast<BitsVec>(shifted) << K::mantissa;
  }
};

// c[first] + c[first + 1] x + ...
template <int first = 0, class F, int N>
FUSEDRNN_INLINE Vec<F> polynomial(const F (&c)[N], Vec<F> x) {
  Vec<F> sum = splat(c[N - 1]);
#pragma GCC unroll 32
  for (int k = N - 2; k >= first; --k) sum = multiply_add<F>(sum, x, splat(c[k]));
  return sum;
}

// The functions that cell.h asks for. They divide. An estimate and Newton iterations would take as
// long where the divider is slow, and longer where it is fast.
template <class F>
struct Math {
  using V = Vec<F>;
  typedef typename VectorType<Bits<F>>::type BitsVec;

  FUSEDRNN_INLINE static V sigmoid(V x) {
    using K = ExpConstants<F>;
    const Reduced<F> e(maximum<F>(minimum<F>(-x, K::exp_limit), -K::exp_limit));
    const V fraction = multiply_add(e.r, polynomial(K::exp, e.r), splat(F(1)));
    const V result = 1 / (1 + bit_cast<V>(bit_cast<BitsVec>(fraction) + e.n));
    // Exactly 0 far out, as torch's is: 0 times an infinite state is NaN, and a tiny gate times it
    // is not. A NaN also stays NaN; the integer sum above may have made a number of its bits.
    return x >= -K::exp_limit ? result : maximum<F>(x, F(0));
  }
  FUSEDRNN_INLINE static V tanh(V x) {
    using K = ExpConstants<F>;
    const V negative_zero = splat(F(-0.0));
    const BitsVec sign_bit = bit_cast<BitsVec>(negative_zero);
    const BitsVec sign = bit_cast<BitsVec>(x) & sign_bit;
    const BitsVec magnitude_bits = bit_cast<BitsVec>(x) & ~sign_bit;
    const V magnitude = minimum<F>(bit_cast<V>(magnitude_bits), K::tanh_limit);
    const Reduced<F> e(magnitude + magnitude);
    const V scale = bit_cast<V>(e.n + (static_cast<Bits<F>>(K::bias) << K::mantissa));
    const V expm1 = multiply_add(scale, e.r * polynomial(K::expm1, e.r), scale - 1);
    const V result = expm1 / (expm1 + 2);
    const BitsVec signed_result = bit_cast<BitsVec>(result) | sign;
    return bit_cast<V>(signed_result);
  }
  FUSEDRNN_INLINE static V multiply_add(V a, V b, V c) {
    return FUSEDRNN_ISA::multiply_add<F>(a, b, c);
  }
  FUSEDRNN_INLINE static V relu(V x) { return maximum<F>(x, F(0)); }
  FUSEDRNN_INLINE static V where_positive(V h, V x) { return h <= 0 ? V{} : x; }
};

// Vectors that go through a cell together, function by function. One vector would be a long chain
// of dependent instructions; several hide each other's latency.
template <class F, int n>
struct Rows {
  Vec<F> at[n];

  Rows() = default;
  FUSEDRNN_INLINE Rows(F number) : Rows(of([&](int) { return splat(number); })) {}  // as in 1 - z

  template <class Function>
  FUSEDRNN_INLINE static Rows of(Function value) {
    Rows result;
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) result.at[i] = value(i);
    return result;
  }
  FUSEDRNN_INLINE friend Rows operator+(const Rows& a, const Rows& b) {
    return of([&](int i) { return a.at[i] + b.at[i]; });
  }
  FUSEDRNN_INLINE friend Rows operator-(const Rows& a, const Rows& b) {
    return of([&](int i) { return a.at[i] - b.at[i]; });
  }
  FUSEDRNN_INLINE friend Rows operator*(const Rows& a, const Rows& b) {
    return of([&](int i) { return a.at[i] * b.at[i]; });
  }
  FUSEDRNN_INLINE friend Rows operator/(const Rows& a, const Rows& b) {
    return of([&](int i) { return a.at[i] / b.at[i]; });
  }
  FUSEDRNN_INLINE friend Rows operator-(const Rows& a) {
    return of([&](int i) { return -a.at[i]; });
  }
};

template <class F, int n>
struct RowsMath {
  using V = Rows<F, n>;
  FUSEDRNN_INLINE static V sigmoid(const V& x) {
    return V::of([&](int i) { return Math<F>::sigmoid(x.at[i]); });
  }
  FUSEDRNN_INLINE static V tanh(const V& x) {
    return V::of([&](int i) { return Math<F>::tanh(x.at[i]); });
  }
  FUSEDRNN_INLINE static V multiply_add(const V& a, const V& b, const V& c) {
    return V::of([&](int i) { return Math<F>::multiply_add(a.at[i], b.at[i], c.at[i]); });
  }
  FUSEDRNN_INLINE static V relu(const V& x) {
    return V::of([&](int i) { return Math<F>::relu(x.at[i]); });
  }
};

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
