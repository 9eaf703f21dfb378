// The functions that a cell written in Python may use and that vec.h does not have.
//
// They work lane by lane and do not branch, except sin and cos, for arguments that no cell should
// have. An argument is reduced to a short interval, where there is a polynomial:
//
//   exp, expm1   x = n ln 2 + r, as in vec.h
//   log, log1p   x or 1 + x = 2^k (1 + f), 0.75 <= 1 + f < 1.5.  With s = f / (2 + f),
//                log(1 + f) = 2 atanh(s) = f - s (f - s^2 L(s^2))
//   softplus     max(x, 0) + log1p(e^-|x|)
//   erf          1 - e^-q with q = |x| E(|x|): by expm1, which keeps its relative accuracy near 0
//   sin, cos     |x| = k pi/2 + r, |r| <= pi/4.  pi/2 is subtracted in pieces, so that r is good to
//                its last bits near multiples of pi/2, too
//
// The coefficients are from Remez' exchange algorithm in 50 digits. The error was weighted to be
// relative to the function's own value. Each coefficient was rounded before those after it were
// fitted again, except for E, whose first one is what limits it: E's were only rounded.
//
// Errors are below 2 ulp, and below 2.7 ulp where no instruction rounds a multiply_add once. Bits
// depend on that instruction, but neither on the width of the vectors nor on the compiler's
// options: every product that could be contracted into a sum is in a multiply_add.
#pragma once

#include <cstdint>

#include "cpu/vec.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

template <class F>
struct FunctionConstants;
template <>
struct FunctionConstants<float> {
  static constexpr float exp_lowest = -104.0f, exp_highest = 89.0f;  // 0 and infinity from there on
  static constexpr float smallest_normal = 0x1p-126f;
  static constexpr float tiny = 0x1p-26f;  // x + x^2 rounds to x below

  static constexpr float minus_log[] = {-0.666666627f, -0.400009334f, -0.285035193f, -0.2415144f};

  static constexpr float erf_limit = 3.93f;  // beyond, erf rounds to 1
  // The first one is 1.125 less than it should be: that is a summand of its own, and exact.
  static constexpr float erf[] = {0.00337917161f,   0.636619382f,     0.102777829f,
                                  -0.0191530587f,   -0.000160404949f, 0.00166703479f,
                                  -0.000632839598f, 0.000117641571f,  -9.25623527e-6f};

  static constexpr float two_over_pi = 0.636619772f;
  static constexpr float circle_limit = 12800.0f;  // beyond, r is not good enough
  // Where a multiply_add rounds its product, the pieces are short, and only the last one's rounds.
#if defined(__AVX2__) || defined(__aarch64__)
  static constexpr float half_pi[] = {0x1.921fb6p+0f, -0x1.777a5cp-25f, -0x1.ee59dap-50f};
#else
  static constexpr float half_pi[] = {0x1.92p+0f, 0x1.fb4p-12f, 0x1.444p-24f, 0x1.68c234p-39f};
#endif
  static constexpr float sin[] = {-0.166666552f, 0.00833218824f, -0.00019518059f};
  static constexpr float cos[] = {0.0416666456f, -0.00138873095f, 2.44323164e-5f};
};
template <>
struct FunctionConstants<double> {
  static constexpr double exp_lowest = -746.0, exp_highest = 710.0;
  static constexpr double smallest_normal = 0x1p-1022;
  static constexpr double tiny = 0x1p-55;

  static constexpr double minus_log[] = {
      -0.66666666666666596, -0.40000000000056662, -0.28571428555830786, -0.22222224296404586,
      -0.18181665865063373, -0.15391112767749424, -0.13173577900955166, -0.13843232580620876,
  };

  static constexpr double erf_limit = 5.93;
  static constexpr double erf[] = {
      0.00337916709551257,     0.63661977236759097,     0.10277260330131552,
      -0.019128446993096039,   -0.00020919485390872967, 0.0016962076697607165,
      -0.00059013242957873225, 2.5904497466763332e-5,   6.4420478786241027e-5,
      -2.9575682222508059e-5,  3.1696949863283038e-6,   3.1329345790085992e-6,
      -2.0371632476528884e-6,  5.7061437618624204e-7,   -1.169787680793947e-8,
      -6.573827198038556e-8,   3.45865726433099e-8,     -1.0773844746703651e-8,
      2.3606246882272944e-9,   -3.7608964007994288e-10, 4.3020130113025464e-11,
      -3.3645416974905771e-12, 1.6149705685355618e-13,  -3.5924341074969255e-15,
  };

  static constexpr double two_over_pi = 0x1.45f306dc9c883p-1;
  static constexpr double circle_limit = 1.3e7;
#if defined(__AVX2__) || defined(__aarch64__)
  static constexpr double half_pi[] = {0x1.921fb54442d18p+0, 0x1.1a62633145c07p-54,
                                       -0x1.f1976b7ed8fbcp-110};
#else
  static constexpr double half_pi[] = {0x1.921fb54p+0, 0x1.10b46118p-30, 0x1.313198ap-61,
                                       0x1.701b839a25204p-92};
#endif
  static constexpr double sin[] = {
      -0.1666666666666663,   0.0083333333333218407,  -0.000198412698293581,
      2.7557313538207959e-6, -2.5050734316210272e-8, 1.5895427557578382e-10,
  };
  static constexpr double cos[] = {
      0.041666666666666595,   -0.0013888888888873312, 2.4801587288969052e-5,
      -2.7557314204312032e-7, 2.0875703312161942e-9,  -1.1358625874348171e-11,
  };
};

// ---- pieces of the functions --------------------------------------------------------------------

template <class F>
using BitsOf = typename VectorType<Bits<F>>::type;

template <class F>
FUSEDRNN_INLINE BitsOf<F> sign_bit() {
  return bit_cast<BitsOf<F>>(splat(F(-0.0)));
}
template <class F>
FUSEDRNN_INLINE Vec<F> magnitude(Vec<F> x) {
  const BitsOf<F> bits = bit_cast<BitsOf<F>>(x) & ~sign_bit<F>();
  return bit_cast<Vec<F>>(bits);
}
template <class F>
FUSEDRNN_INLINE Vec<F> with_sign_of(Vec<F> sign, Vec<F> x) {
  const BitsOf<F> bits =
      (bit_cast<BitsOf<F>>(x) & ~sign_bit<F>()) | (bit_cast<BitsOf<F>>(sign) & sign_bit<F>());
  return bit_cast<Vec<F>>(bits);
}
// 2^n, n as Reduced has it, divided by 2^halvings.
template <class F>
FUSEDRNN_INLINE Vec<F> power_of_two(BitsOf<F> n, int halvings = 0) {
  using K = ExpConstants<F>;
  const BitsOf<F> bits = n + (static_cast<Bits<F>>(K::bias - halvings) << K::mantissa);
  return bit_cast<Vec<F>>(bits);
}

// `polynomial` as two chains of half the length, for many coefficients: those of even powers and
// those of odd ones.
template <int first = 0, class F, int N>
FUSEDRNN_INLINE Vec<F> long_polynomial(const F (&c)[N], Vec<F> x) {
  const Vec<F> square = x * x;
  Vec<F> last = splat(c[N - 1]), other = splat(c[N - 2]);
#pragma GCC unroll 16
  for (int k = N - 3; k >= first; k -= 2) {
    last = multiply_add<F>(last, square, splat(c[k]));
    if (k > first) other = multiply_add<F>(other, square, splat(c[k - 1]));
  }
  constexpr bool last_is_even = (N - 1 - first) % 2 == 0;
  return last_is_even ? multiply_add<F>(other, x, last) : multiply_add<F>(last, x, other);
}

// (e^x - 1) / 2^halvings, x between -exp_limit and what a finite 2^n allows.
template <class F, int halvings>
FUSEDRNN_INLINE Vec<F> expm1_halved(Vec<F> x) {
  using K = ExpConstants<F>;
  const Reduced<F> e(x);
  const Vec<F> scale = power_of_two<F>(e.n, halvings);
  // e^r - 1 = r + curve, of which curve is small: its rounding errors are, too.
  const Vec<F> curve = e.r * e.r * polynomial<1>(K::expm1, e.r);
  const Vec<F> line = multiply_add<F>(scale, e.r, scale - F(1.0 / (1 << halvings)));
  return multiply_add<F>(scale, curve, line);
}

#if defined(__AVX512F__)
// x * 2^n, rounded once. n is an integer, and may be beyond the range of exponents.
template <class F>
FUSEDRNN_INLINE Vec<F> times_power(Vec<F> x, Vec<F> n) {
  if constexpr (sizeof(F) == 4)
    return _mm512_maskz_scalef_ps(0xffff, x, n);
  else
    return _mm512_maskz_scalef_pd(0xff, x, n);
}
#endif

// u = 2^k m, 0.75 <= m < 1.5; u positive and finite, and normal but for of_any.
template <class F>
struct Factors {
  using V = Vec<F>;
  using E = ExpConstants<F>;
  V m, k;

#if defined(__AVX512F__)
  FUSEDRNN_INLINE explicit Factors(V u) {
    if constexpr (sizeof(F) == 4) {
      m = _mm512_maskz_getmant_ps(0xffff, u, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
      k = _mm512_maskz_getexp_ps(0xffff, u) - _mm512_maskz_getexp_ps(0xffff, m);
    } else {
      m = _mm512_maskz_getmant_pd(0xff, u, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
      k = _mm512_maskz_getexp_pd(0xff, u) - _mm512_maskz_getexp_pd(0xff, m);
    }
  }
  FUSEDRNN_INLINE static Factors of_any(V u) { return Factors(u); }
  FUSEDRNN_INLINE V inverse_power() const { return times_power<F>(splat(F(1)), -k); }  // 2^-k
#else
  using Word = std::make_unsigned_t<Bits<F>>;
  using Words = typename VectorType<Word>::type;
  static constexpr Word unit = Word(1) << E::mantissa;  // 1 where an exponent is
  Words exponent;                                       // k + bias

  FUSEDRNN_INLINE explicit Factors(V u) : Factors(u, V{}) {}
  FUSEDRNN_INLINE Factors(V u, V less) {                // `less` is subtracted from k
    constexpr Word lowest = E::bias * unit - unit / 2;  // 0.75
    const Words above = bit_cast<Words>(u) + (E::bias * unit - lowest);
    exponent = above >> E::mantissa;
    const Words mantissa = (above & (unit - 1)) + lowest;
    m = bit_cast<V>(mantissa);
    // An integer below `unit`, or-ed to the bits of F(unit), is added to it.
    const Words sum = exponent | bit_cast<Words>(splat(F(unit)));
    k = bit_cast<V>(sum) - F(unit + E::bias) - less;
  }
  FUSEDRNN_INLINE static Factors of_any(V u) {
    const auto subnormal = u < FunctionConstants<F>::smallest_normal;
    return Factors(subnormal ? u * F(unit) : u, subnormal ? splat(F(E::mantissa)) : V{});
  }
  FUSEDRNN_INLINE V inverse_power() const {
    // 2^(1 - k) is a normal number, or 0 where 2^-k may be subnormal.
    const Words bits = (Word(2 * E::bias + 1) - exponent) << E::mantissa;
    return bit_cast<V>(bits) * F(0.5);
  }
#endif
};

// k ln 2 + log(1 + f), f between -1/4 and 1/2.
template <class F>
FUSEDRNN_INLINE Vec<F> log_of(Vec<F> k, Vec<F> f) {
  using E = ExpConstants<F>;
  const Vec<F> s = f / (f + 2), square = s * s;
  const Vec<F> minus_l = polynomial(FunctionConstants<F>::minus_log, square);
  const Vec<F> curve = s * multiply_add<F>(square, minus_l, f);
  return multiply_add<F>(k, E::ln2_high, f - multiply_add<F>(k, -E::ln2_low, curve));
}
// log(u) where it is no number, else `result`.
template <class F>
FUSEDRNN_INLINE Vec<F> log_ends(Vec<F> u, Vec<F> result) {
  constexpr F infinity = F(__builtin_inf());
  const Vec<F> low = u == 0 ? splat(-infinity) : splat(F(__builtin_nan("")));
  const Vec<F> high = u == infinity ? u : result;
  return u > 0 ? high : low;
}

template <class F>
FUSEDRNN_INLINE bool any_above(Vec<F> x, F limit) {
#if defined(__AVX512F__)
  if constexpr (sizeof(F) == 4)
    return _mm512_cmp_ps_mask(x, splat(limit), _CMP_GT_OQ) != 0;
  else
    return _mm512_cmp_pd_mask(x, splat(limit), _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8(bit_cast<__m256i>(x > limit)) != 0;
#else
  const auto words = bit_cast<BitsOf<double>>(x > limit);
  int64_t any = 0;
  for (int l = 0; l < kLanes<double>; ++l) any |= words[l];
  return any != 0;
#endif
}

enum class Wave { sin, cos };

// Lanes beyond circle_limit, one at a time.
template <class F, Wave wave>
__attribute__((noinline)) Vec<F> far_out(Vec<F> x, Vec<F> result) {
  for (int l = 0; l < kLanes<F>; ++l) {
    const F angle = x[l];
    if (!(angle > FunctionConstants<F>::circle_limit ||
          angle < -FunctionConstants<F>::circle_limit))
      continue;
    if constexpr (sizeof(F) == 4)
      result[l] = wave == Wave::sin ? __builtin_sinf(angle) : __builtin_cosf(angle);
    else
      result[l] = wave == Wave::sin ? __builtin_sin(angle) : __builtin_cos(angle);
  }
  return result;
}

template <class F, Wave wave>
FUSEDRNN_INLINE Vec<F> circle(Vec<F> x) {
  using E = ExpConstants<F>;
  using K = FunctionConstants<F>;
  const Vec<F> angle = magnitude<F>(x);
  const Vec<F> shifted = multiply_add<F>(angle, K::two_over_pi, splat(E::rounder));
  const Vec<F> k = shifted - E::rounder;
  Vec<F> r = angle;
#pragma GCC unroll 4
  for (const F piece : K::half_pi) r = multiply_add<F>(k, -piece, r);

  const Vec<F> square = r * r;
  const Vec<F> sin = multiply_add<F>(r * square, polynomial(K::sin, square), r);
  const Vec<F> cos_slope = multiply_add<F>(square, polynomial(K::cos, square), splat(F(-0.5)));
  const Vec<F> cos = multiply_add<F>(square, cos_slope, splat(F(1)));

  // Quadrants of sin: sin, cos, -sin, -cos. cos is one quadrant ahead.
  const BitsOf<F> quadrant = bit_cast<BitsOf<F>>(shifted) + (wave == Wave::cos ? 1 : 0);
  const BitsOf<F> odd = -(quadrant & 1);
  BitsOf<F> sign = quadrant << (sizeof(F) * 8 - 2);
  if (wave == Wave::sin) sign ^= bit_cast<BitsOf<F>>(x);
  const BitsOf<F> value = (bit_cast<BitsOf<F>>(sin) & ~odd) | (bit_cast<BitsOf<F>>(cos) & odd);
  const BitsOf<F> bits = value ^ (sign & sign_bit<F>());
  const Vec<F> result = bit_cast<Vec<F>>(bits);
  if (__builtin_expect(any_above<F>(angle, K::circle_limit), 0)) return far_out<F, wave>(x, result);
  return result;
}

// ---- the functions ------------------------------------------------------------------------------

template <class F>
struct Functions {
  using V = Vec<F>;
  using E = ExpConstants<F>;
  using K = FunctionConstants<F>;

  FUSEDRNN_INLINE static V exp(V x) {
    const V limited = FUSEDRNN_ISA::minimum<F>(x, K::exp_highest);
    const Reduced<F> e(FUSEDRNN_ISA::maximum<F>(limited, K::exp_lowest));
    const V fraction = 1 + multiply_add<F>(e.r * e.r, polynomial<1>(E::expm1, e.r), e.r);
#if defined(__AVX512F__)
    return times_power<F>(fraction, e.whole);
#else
    // 2^n may be no number where the result is one: half of n, and what remains of it.
    const V shifted = multiply_add<F>(e.whole, F(0.5), splat(E::rounder));
    const BitsOf<F> half = bit_cast<BitsOf<F>>(shifted) << E::mantissa;
    return fraction * power_of_two<F>(half) * power_of_two<F>(e.n - half);
#endif
  }
  FUSEDRNN_INLINE static V expm1(V x) {
    const V limited = FUSEDRNN_ISA::minimum<F>(x, K::exp_highest);
    const V half = expm1_halved<F, 1>(FUSEDRNN_ISA::maximum<F>(limited, -E::exp_limit));
    return magnitude<F>(x) < K::tiny ? x : half + half;
  }
  FUSEDRNN_INLINE static V log(V x) {
    const Factors<F> factors = Factors<F>::of_any(x);
    return log_ends<F>(x, log_of<F>(factors.k, factors.m - 1));
  }
  FUSEDRNN_INLINE static V log1p(V x) {
    // u + rest = 1 + x exactly.
    const V u = 1 + x, back = u - 1, rest = (x - back) + (1 - (u - back));
    const Factors<F> factors(u);
    const V f = multiply_add<F>(rest, factors.inverse_power(), factors.m - 1);
    return with_sign_of<F>(x, log_ends<F>(u, log_of<F>(factors.k, f)));
  }
  FUSEDRNN_INLINE static V softplus(V x) {
    // 1 + y = 2^k (1 + f), f without an error.
    const V y = exp(FUSEDRNN_ISA::minimum<F>(x, -x)),
            half = multiply_add<F>(y, F(0.5), splat(F(-0.5)));
    const auto high = y >= F(0.5);
    const V tail = log_of<F>(high ? splat(F(1)) : V{}, high ? half : y);
    return FUSEDRNN_ISA::maximum<F>(x, F(0)) + tail;
  }
  FUSEDRNN_INLINE static V erf(V x) {
    const V a = FUSEDRNN_ISA::minimum<F>(magnitude<F>(x), K::erf_limit);
    const V q = multiply_add<F>(a, F(1.125), a * long_polynomial(K::erf, a));
    return with_sign_of<F>(x, expm1_halved<F, 0>(-q));
  }
  FUSEDRNN_INLINE static V sin(V x) { return circle<F, Wave::sin>(x); }
  FUSEDRNN_INLINE static V cos(V x) { return circle<F, Wave::cos>(x); }

  FUSEDRNN_INLINE static V sqrt(V x) {
#if defined(__AVX512F__)
    if constexpr (sizeof(F) == 4)
      return _mm512_maskz_sqrt_ps(0xffff, x);
    else
      return _mm512_maskz_sqrt_pd(0xff, x);
#elif defined(__AVX2__)
    if constexpr (sizeof(F) == 4)
      return _mm256_sqrt_ps(x);
    else
      return _mm256_sqrt_pd(x);
#else
    F lane[kLanes<F>];
    store(lane, x);
    for (F& number : lane)
      number = sizeof(F) == 4 ? F(__builtin_sqrtf(float(number))) : F(__builtin_sqrt(number));
    return load(lane);
#endif
  }
  FUSEDRNN_INLINE static V reciprocal(V x) { return 1 / x; }
  FUSEDRNN_INLINE static V abs(V x) { return magnitude<F>(x); }
  FUSEDRNN_INLINE static V sign(V x) { return gt(x, V{}) - gt(V{}, x); }  // of a NaN 0, as torch's

  // A NaN in either is the result.
  FUSEDRNN_INLINE static V maximum(V a, V b) { return a != a ? a : FUSEDRNN_ISA::maximum<F>(b, a); }
  FUSEDRNN_INLINE static V minimum(V a, V b) { return a != a ? a : FUSEDRNN_ISA::minimum<F>(b, a); }
  FUSEDRNN_INLINE static V gt(V a, V b) { return a > b ? splat(F(1)) : V{}; }
  FUSEDRNN_INLINE static V ge(V a, V b) { return a >= b ? splat(F(1)) : V{}; }
  FUSEDRNN_INLINE static V eq(V a, V b) { return a == b ? splat(F(1)) : V{}; }
  FUSEDRNN_INLINE static V ne(V a, V b) { return a != b ? splat(F(1)) : V{}; }
  FUSEDRNN_INLINE static V select(V m, V a, V b) { return m != 0 ? a : b; }
};

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
