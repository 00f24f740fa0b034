// The vocabulary of math/scalar.h for AVX2 with FMA and F16C: 8 float or 4 double lanes.
#pragma once

#include <immintrin.h>

#include "cpu/simd/pack.h"
#include "math/half.h"
#include "math/scalar.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// All bits of a lane are equal.
template <>
struct LaneMask<float> {
  __m256 m;
};
template <>
struct LaneMask<double> {
  __m256d m;
};

template <>
struct Vec<int32_t> {
  using scalar = int32_t;
  __m256i v;
  Vec() = default;
  FASTACT_FN Vec(__m256i x) : v(x) {}
  FASTACT_FN explicit Vec(int32_t x) : v(_mm256_set1_epi32(x)) {}
};
template <>
struct Vec<int64_t> {
  using scalar = int64_t;
  __m256i v;
  Vec() = default;
  FASTACT_FN Vec(__m256i x) : v(x) {}
  FASTACT_FN explicit Vec(int64_t x) : v(_mm256_set1_epi64x(x)) {}
};

template <>
struct Vec<float> {
  using scalar = float;
  using Int = Vec<int32_t>;
  using Mask = LaneMask<float>;
  static constexpr int size = 8;
  // By a permutation of one register: gathers cost 85-110 cycles per 16 elements of a function that
  // takes 15-20 so (AMD Zen 5).
  static constexpr bool has_lookup = true;
  static constexpr int lookup_entries = 8;
  static constexpr bool has_fma = true;

  __m256 v;

  Vec() = default;
  FASTACT_FN Vec(__m256 x) : v(x) {}
  FASTACT_FN explicit Vec(float x) : v(_mm256_set1_ps(x)) {}

  // Memory of any alignment; with n, only the first n lanes are touched, and others load as 0.
  static FASTACT_FN Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static FASTACT_FN Vec load(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  static FASTACT_FN Vec load(const BFloat16* p) { return from_bfloat16(_mm_loadu_si128(cast(p))); }
  static FASTACT_FN Vec load(const BFloat16* p, int n) { return from_bfloat16(load_some(p, n)); }
  static FASTACT_FN Vec load(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(cast(p))); }
  static FASTACT_FN Vec load(const Half* p, int n) { return _mm256_cvtph_ps(load_some(p, n)); }

  FASTACT_FN void store(float* p) const { _mm256_storeu_ps(p, v); }
  FASTACT_FN void store(float* p, int n) const { _mm256_maskstore_ps(p, first(n), v); }
  FASTACT_FN void store(BFloat16* p) const { _mm_storeu_si128(cast(p), bfloat16()); }
  FASTACT_FN void store(BFloat16* p, int n) const { store_some(p, bfloat16(), n); }
  FASTACT_FN void store(Half* p) const { _mm_storeu_si128(cast(p), half()); }
  FASTACT_FN void store(Half* p, int n) const { store_some(p, half(), n); }

 private:
  static FASTACT_FN __m256i first(int n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
  }
  static FASTACT_FN const __m128i* cast(const void* p) { return static_cast<const __m128i*>(p); }
  static FASTACT_FN __m128i* cast(void* p) { return static_cast<__m128i*>(p); }
  template <class T>
  static FASTACT_FN __m128i load_some(const T* p, int n) {
    T lanes[size] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return _mm_loadu_si128(cast(lanes));
  }
  template <class T>
  static FASTACT_FN void store_some(T* p, __m128i bits, int n) {
    T lanes[size];
    _mm_storeu_si128(cast(lanes), bits);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static FASTACT_FN __m256 from_bfloat16(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  FASTACT_FN __m128i bfloat16() const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet_nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    const __m256i all =
        _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet_nan, _mm256_castps_si256(nan)), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  }
  FASTACT_FN __m128i half() const { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
};

template <>
struct Vec<double> {
  using scalar = double;
  using Int = Vec<int64_t>;
  using Mask = LaneMask<double>;
  static constexpr int size = 4;
  static constexpr bool has_lookup = false;
  static constexpr int lookup_entries = 0;
  static constexpr bool has_fma = true;

  __m256d v;

  Vec() = default;
  FASTACT_FN Vec(__m256d x) : v(x) {}
  FASTACT_FN explicit Vec(double x) : v(_mm256_set1_pd(x)) {}

  static FASTACT_FN Vec load(const double* p) { return _mm256_loadu_pd(p); }
  static FASTACT_FN Vec load(const double* p, int n) { return _mm256_maskload_pd(p, first(n)); }
  FASTACT_FN void store(double* p) const { _mm256_storeu_pd(p, v); }
  FASTACT_FN void store(double* p, int n) const { _mm256_maskstore_pd(p, first(n), v); }

 private:
  static FASTACT_FN __m256i first(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
};

// ---- float ----

FASTACT_FN Vec<float> operator+(Vec<float> a, Vec<float> b) { return _mm256_add_ps(a.v, b.v); }
FASTACT_FN Vec<float> operator-(Vec<float> a, Vec<float> b) { return _mm256_sub_ps(a.v, b.v); }
FASTACT_FN Vec<float> operator*(Vec<float> a, Vec<float> b) { return _mm256_mul_ps(a.v, b.v); }
FASTACT_FN Vec<float> operator/(Vec<float> a, Vec<float> b) { return _mm256_div_ps(a.v, b.v); }
FASTACT_FN Vec<float> operator-(Vec<float> a) { return _mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f)); }
FASTACT_FN Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm256_fmadd_ps(a.v, b.v, c.v);
}
FASTACT_FN Vec<float> fnma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm256_fnmadd_ps(a.v, b.v, c.v);
}
FASTACT_FN Vec<float> min(Vec<float> a, Vec<float> b) { return _mm256_min_ps(a.v, b.v); }
FASTACT_FN Vec<float> max(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a.v, b.v); }
FASTACT_FN Vec<float> abs(Vec<float> a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
FASTACT_FN Vec<float> copysign(Vec<float> magnitude, Vec<float> sign) {
  const __m256 sign_bit = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_andnot_ps(sign_bit, magnitude.v), _mm256_and_ps(sign_bit, sign.v));
}
FASTACT_FN Vec<float> round(Vec<float> a) {
  return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// A fraction in n is rounded down.
FASTACT_FN Vec<float> scale(Vec<float> a, Vec<float> n) {
  // Two factors, since one exponent field reaches neither 2^-149 nor 2^128; only the second
  // multiplication can round. At -254 both are 0.
  const Vec<float> held = max(Vec<float>(-254.0f), min(Vec<float>(252.0f), n));
  const __m256i k = _mm256_cvtps_epi32(_mm256_floor_ps(held.v));
  const __m256i half = _mm256_srai_epi32(k, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i rest = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(k, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(a.v, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(rest));
}

// 2^n for n from -126 to 127, a fraction rounded down.
FASTACT_FN Vec<float> power_of_two(Vec<float> n) {
  const __m256i k = _mm256_cvtps_epi32(_mm256_floor_ps(n.v));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(k, _mm256_set1_epi32(127)), 23));
}
// a 2^n for a normal number |a| in [0.1, 120] and n <= 57, a fraction rounded down; 0 and
// subnormal results, too.
FASTACT_FN Vec<float> scale_down(Vec<float> a, Vec<float> n) {
  // 2^(n + 64) goes into the exponent; the rest is one product, which rounds a subnormal result.
  // What rounds to 0 is made 0 before, since an underflow costs some 40 cycles (AMD Zen 5).
  const __m256i k = _mm256_cvtps_epi32(_mm256_floor_ps(max(Vec<float>(-184), n).v));
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(k, _mm256_set1_epi32(64)), 23);
  const __m256 scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.v), exponent));
  const __m256 is_zero = _mm256_cmp_ps(n.v, _mm256_set1_ps(-157.0f), _CMP_LT_OQ);
  return _mm256_mul_ps(_mm256_andnot_ps(is_zero, scaled), _mm256_set1_ps(0x1p-64f));
}
FASTACT_FN LaneMask<float> operator<(Vec<float> a, Vec<float> b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)};
}
FASTACT_FN LaneMask<float> operator<=(Vec<float> a, Vec<float> b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)};
}
FASTACT_FN LaneMask<float> operator>(Vec<float> a, Vec<float> b) { return b < a; }
FASTACT_FN LaneMask<float> operator>=(Vec<float> a, Vec<float> b) { return b <= a; }
FASTACT_FN LaneMask<float> operator==(Vec<float> a, Vec<float> b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)};
}
FASTACT_FN LaneMask<float> operator!=(Vec<float> a, Vec<float> b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_NEQ_UQ)};
}
FASTACT_FN LaneMask<float> isnan(Vec<float> a) { return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)}; }
FASTACT_FN Vec<float> select(LaneMask<float> mask, Vec<float> if_true, Vec<float> if_false) {
  return _mm256_blendv_ps(if_false.v, if_true.v, mask.m);
}
FASTACT_FN LaneMask<float> operator&(LaneMask<float> a, LaneMask<float> b) {
  return {_mm256_and_ps(a.m, b.m)};
}
FASTACT_FN LaneMask<float> operator|(LaneMask<float> a, LaneMask<float> b) {
  return {_mm256_or_ps(a.m, b.m)};
}
FASTACT_FN LaneMask<float> operator!(LaneMask<float> a) {
  return {_mm256_xor_ps(a.m, _mm256_castsi256_ps(_mm256_set1_epi32(-1)))};
}
FASTACT_FN bool any(LaneMask<float> a) { return _mm256_movemask_ps(a.m) != 0; }

FASTACT_FN Vec<int32_t> to_bits(Vec<float> a) { return _mm256_castps_si256(a.v); }
template <class V>
FASTACT_FN V from_bits(Vec<int32_t> a) {
  return _mm256_castsi256_ps(a.v);
}

// table[index mod kEntries]; the table is aligned to 32 bytes.
template <class V, int kEntries>
FASTACT_FN V lookup(const float (&table)[kEntries], Vec<int32_t> index) {
  static_assert(kEntries == 8 || kEntries == 16, "one register or two");
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), index.v);
  if constexpr (kEntries == 8) {
    return low;
  } else {
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), index.v);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index.v, 28)));
  }
}

FASTACT_FN float horizontal_sum(Vec<float> a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
FASTACT_FN float horizontal_max(Vec<float> a) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// ---- double ----

FASTACT_FN Vec<double> operator+(Vec<double> a, Vec<double> b) { return _mm256_add_pd(a.v, b.v); }
FASTACT_FN Vec<double> operator-(Vec<double> a, Vec<double> b) { return _mm256_sub_pd(a.v, b.v); }
FASTACT_FN Vec<double> operator*(Vec<double> a, Vec<double> b) { return _mm256_mul_pd(a.v, b.v); }
FASTACT_FN Vec<double> operator/(Vec<double> a, Vec<double> b) { return _mm256_div_pd(a.v, b.v); }
FASTACT_FN Vec<double> operator-(Vec<double> a) { return _mm256_xor_pd(a.v, _mm256_set1_pd(-0.0)); }
FASTACT_FN Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm256_fmadd_pd(a.v, b.v, c.v);
}
FASTACT_FN Vec<double> fnma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm256_fnmadd_pd(a.v, b.v, c.v);
}
FASTACT_FN Vec<double> min(Vec<double> a, Vec<double> b) { return _mm256_min_pd(a.v, b.v); }
FASTACT_FN Vec<double> max(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a.v, b.v); }
FASTACT_FN Vec<double> abs(Vec<double> a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v); }
FASTACT_FN Vec<double> copysign(Vec<double> magnitude, Vec<double> sign) {
  const __m256d sign_bit = _mm256_set1_pd(-0.0);
  return _mm256_or_pd(_mm256_andnot_pd(sign_bit, magnitude.v), _mm256_and_pd(sign_bit, sign.v));
}
FASTACT_FN Vec<double> round(Vec<double> a) {
  return _mm256_round_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
FASTACT_FN Vec<double> scale(Vec<double> a, Vec<double> n) {
  // As for float. Added to 2^52 and 2^51, a small integer stands in the low bits as it is.
  const Vec<double> held = max(Vec<double>(-2044.0), min(Vec<double>(2044.0), n));
  const Vec<double> half = round(held * Vec<double>(0.5));
  const Vec<double> shift(0x1.8p52 + 1023);
  const __m256i first = _mm256_slli_epi64(_mm256_castpd_si256((half + shift).v), 52);
  const __m256i rest = _mm256_slli_epi64(_mm256_castpd_si256(((held - half) + shift).v), 52);
  return _mm256_mul_pd(_mm256_mul_pd(a.v, _mm256_castsi256_pd(first)), _mm256_castsi256_pd(rest));
}

FASTACT_FN LaneMask<double> operator<(Vec<double> a, Vec<double> b) {
  return {_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)};
}
FASTACT_FN LaneMask<double> operator<=(Vec<double> a, Vec<double> b) {
  return {_mm256_cmp_pd(a.v, b.v, _CMP_LE_OQ)};
}
FASTACT_FN LaneMask<double> operator>(Vec<double> a, Vec<double> b) { return b < a; }
FASTACT_FN LaneMask<double> operator>=(Vec<double> a, Vec<double> b) { return b <= a; }
FASTACT_FN LaneMask<double> operator==(Vec<double> a, Vec<double> b) {
  return {_mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ)};
}
FASTACT_FN LaneMask<double> operator!=(Vec<double> a, Vec<double> b) {
  return {_mm256_cmp_pd(a.v, b.v, _CMP_NEQ_UQ)};
}
FASTACT_FN LaneMask<double> isnan(Vec<double> a) { return {_mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q)}; }
FASTACT_FN Vec<double> select(LaneMask<double> mask, Vec<double> if_true, Vec<double> if_false) {
  return _mm256_blendv_pd(if_false.v, if_true.v, mask.m);
}
FASTACT_FN LaneMask<double> operator&(LaneMask<double> a, LaneMask<double> b) {
  return {_mm256_and_pd(a.m, b.m)};
}
FASTACT_FN LaneMask<double> operator|(LaneMask<double> a, LaneMask<double> b) {
  return {_mm256_or_pd(a.m, b.m)};
}
FASTACT_FN LaneMask<double> operator!(LaneMask<double> a) {
  return {_mm256_xor_pd(a.m, _mm256_castsi256_pd(_mm256_set1_epi32(-1)))};
}
FASTACT_FN bool any(LaneMask<double> a) { return _mm256_movemask_pd(a.m) != 0; }

FASTACT_FN Vec<int64_t> to_bits(Vec<double> a) { return _mm256_castpd_si256(a.v); }
template <class V>
FASTACT_FN V from_bits(Vec<int64_t> a) {
  return _mm256_castsi256_pd(a.v);
}

FASTACT_FN double horizontal_sum(Vec<double> a) {
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
FASTACT_FN double horizontal_max(Vec<double> a) {
  const __m128d two = _mm_max_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_max_sd(two, _mm_unpackhi_pd(two, two)));
}

// The lanes of a float vector as two vectors of double lanes, and back (rounded once).
FASTACT_FN void split(Vec<float> a, Vec<double>* low, Vec<double>* high) {
  *low = _mm256_cvtps_pd(_mm256_castps256_ps128(a.v));
  *high = _mm256_cvtps_pd(_mm256_extractf128_ps(a.v, 1));
}
FASTACT_FN Vec<float> join(Vec<double> low, Vec<double> high) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(low.v)),
                              _mm256_cvtpd_ps(high.v), 1);
}

// ---- integers ----

FASTACT_FN Vec<int32_t> operator+(Vec<int32_t> a, Vec<int32_t> b) {
  return _mm256_add_epi32(a.v, b.v);
}
FASTACT_FN Vec<int32_t> operator-(Vec<int32_t> a, Vec<int32_t> b) {
  return _mm256_sub_epi32(a.v, b.v);
}
FASTACT_FN Vec<int32_t> operator&(Vec<int32_t> a, Vec<int32_t> b) {
  return _mm256_and_si256(a.v, b.v);
}
FASTACT_FN Vec<int32_t> operator|(Vec<int32_t> a, Vec<int32_t> b) {
  return _mm256_or_si256(a.v, b.v);
}
FASTACT_FN Vec<int32_t> max(Vec<int32_t> a, Vec<int32_t> b) { return _mm256_max_epi32(a.v, b.v); }
template <int kBits>
FASTACT_FN Vec<int32_t> shift_left(Vec<int32_t> a) {
  return _mm256_slli_epi32(a.v, kBits);
}
template <int kBits>
FASTACT_FN Vec<int32_t> shift_right(Vec<int32_t> a) {
  return _mm256_srli_epi32(a.v, kBits);
}
FASTACT_FN bool any_greater(Vec<int32_t> a, int32_t limit) {
  return _mm256_movemask_epi8(_mm256_cmpgt_epi32(a.v, _mm256_set1_epi32(limit))) != 0;
}

FASTACT_FN Vec<int64_t> operator+(Vec<int64_t> a, Vec<int64_t> b) {
  return _mm256_add_epi64(a.v, b.v);
}
FASTACT_FN Vec<int64_t> operator-(Vec<int64_t> a, Vec<int64_t> b) {
  return _mm256_sub_epi64(a.v, b.v);
}
FASTACT_FN Vec<int64_t> operator&(Vec<int64_t> a, Vec<int64_t> b) {
  return _mm256_and_si256(a.v, b.v);
}
FASTACT_FN Vec<int64_t> operator|(Vec<int64_t> a, Vec<int64_t> b) {
  return _mm256_or_si256(a.v, b.v);
}
template <int kBits>
FASTACT_FN Vec<int64_t> shift_left(Vec<int64_t> a) {
  return _mm256_slli_epi64(a.v, kBits);
}
template <int kBits>
FASTACT_FN Vec<int64_t> shift_right(Vec<int64_t> a) {
  return _mm256_srli_epi64(a.v, kBits);
}

// Rows become columns.
FASTACT_FN void transpose(Vec<float> (&r)[8]) {
  __m256 pairs[8];
  FASTACT_UNROLL for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
    pairs[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  __m256d fours[8];  // [i + c]: rows i to i + 3 of the columns c and c + 4
  FASTACT_UNROLL for (int i = 0; i < 8; i += 4) {
    FASTACT_UNROLL for (int c = 0; c < 2; ++c) {
      const __m256d low = _mm256_castps_pd(pairs[i + c]);
      const __m256d high = _mm256_castps_pd(pairs[i + c + 2]);
      fours[i + 2 * c] = _mm256_unpacklo_pd(low, high);
      fours[i + 2 * c + 1] = _mm256_unpackhi_pd(low, high);
    }
  }
  FASTACT_UNROLL for (int c = 0; c < 4; ++c) {
    const __m256 top = _mm256_castpd_ps(fours[c]);
    const __m256 bottom = _mm256_castpd_ps(fours[c + 4]);
    r[c] = _mm256_permute2f128_ps(top, bottom, 0x20);
    r[c + 4] = _mm256_permute2f128_ps(top, bottom, 0x31);
  }
}
FASTACT_FN void transpose(Vec<double> (&r)[4]) {
  __m256d pairs[4];
  FASTACT_UNROLL for (int i = 0; i < 4; i += 2) {
    pairs[i] = _mm256_unpacklo_pd(r[i].v, r[i + 1].v);
    pairs[i + 1] = _mm256_unpackhi_pd(r[i].v, r[i + 1].v);
  }
  FASTACT_UNROLL for (int c = 0; c < 2; ++c) {
    r[c] = _mm256_permute2f128_pd(pairs[c], pairs[c + 2], 0x20);
    r[c + 2] = _mm256_permute2f128_pd(pairs[c], pairs[c + 2], 0x31);
  }
}

constexpr bool kHasDotPairs = false;

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
