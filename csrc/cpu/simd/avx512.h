// The vocabulary of math/scalar.h for AVX-512 (F, BW, VL, DQ): 16 float or 8 double lanes.
#pragma once

// GCC 12 sees the deliberately undefined operands inside these intrinsics as mistakes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "cpu/simd/pack.h"
#include "math/half.h"
#include "math/scalar.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

template <>
struct LaneMask<float> {
  __mmask16 m;
};
template <>
struct LaneMask<double> {
  __mmask8 m;
};

template <>
struct Vec<int32_t> {
  using scalar = int32_t;
  __m512i v;
  Vec() = default;
  FASTACT_FN Vec(__m512i x) : v(x) {}
  FASTACT_FN explicit Vec(int32_t x) : v(_mm512_set1_epi32(x)) {}
};
template <>
struct Vec<int64_t> {
  using scalar = int64_t;
  __m512i v;
  Vec() = default;
  FASTACT_FN Vec(__m512i x) : v(x) {}
  FASTACT_FN explicit Vec(int64_t x) : v(_mm512_set1_epi64(x)) {}
};

template <>
struct Vec<float> {
  using scalar = float;
  using Int = Vec<int32_t>;
  using Mask = LaneMask<float>;
  static constexpr int size = 16;
  static constexpr bool has_lookup = true;
  static constexpr int lookup_entries = 32;
  static constexpr bool has_fma = true;

  __m512 v;

  Vec() = default;
  FASTACT_FN Vec(__m512 x) : v(x) {}
  FASTACT_FN explicit Vec(float x) : v(_mm512_set1_ps(x)) {}

  // Memory of any alignment; with n, only the first n lanes are touched, and others load as 0.
  static FASTACT_FN Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static FASTACT_FN Vec load(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static FASTACT_FN Vec load(const BFloat16* p) { return widen(_mm256_loadu_si256(cast(p))); }
  static FASTACT_FN Vec load(const BFloat16* p, int n) {
    return widen(_mm256_maskz_loadu_epi16(first(n), p));
  }
  static FASTACT_FN Vec load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(cast(p))); }
  static FASTACT_FN Vec load(const Half* p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
  }

  FASTACT_FN void store(float* p) const { _mm512_storeu_ps(p, v); }
  FASTACT_FN void store(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  FASTACT_FN void store(BFloat16* p) const { _mm256_storeu_si256(cast(p), bfloat16()); }
  FASTACT_FN void store(BFloat16* p, int n) const {
    _mm256_mask_storeu_epi16(p, first(n), bfloat16());
  }
  FASTACT_FN void store(Half* p) const { _mm256_storeu_si256(cast(p), half()); }
  FASTACT_FN void store(Half* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), half()); }

 private:
  static FASTACT_FN __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static FASTACT_FN const __m256i* cast(const void* p) { return static_cast<const __m256i*>(p); }
  static FASTACT_FN __m256i* cast(void* p) { return static_cast<__m256i*>(p); }
  static FASTACT_FN __m512 widen(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  FASTACT_FN __m256i bfloat16() const {
#if defined(__AVX512BF16__)
    // This instruction takes subnormal numbers for 0.
    constexpr int kSubnormal = 0x20;
    if (!FASTACT_UNLIKELY(_mm512_fpclass_ps_mask(v, kSubnormal))) {
      return (__m256i)_mm512_cvtneps_pbh(v);
    }
#endif
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  }
  FASTACT_FN __m256i half() const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
};

template <>
struct Vec<double> {
  using scalar = double;
  using Int = Vec<int64_t>;
  using Mask = LaneMask<double>;
  static constexpr int size = 8;
  static constexpr bool has_lookup = false;
  static constexpr int lookup_entries = 0;
  static constexpr bool has_fma = true;

  __m512d v;

  Vec() = default;
  FASTACT_FN Vec(__m512d x) : v(x) {}
  FASTACT_FN explicit Vec(double x) : v(_mm512_set1_pd(x)) {}

  static FASTACT_FN Vec load(const double* p) { return _mm512_loadu_pd(p); }
  static FASTACT_FN Vec load(const double* p, int n) { return _mm512_maskz_loadu_pd(first(n), p); }
  FASTACT_FN void store(double* p) const { _mm512_storeu_pd(p, v); }
  FASTACT_FN void store(double* p, int n) const { _mm512_mask_storeu_pd(p, first(n), v); }

 private:
  static FASTACT_FN __mmask8 first(int n) { return static_cast<__mmask8>((1u << n) - 1); }
};

// ---- float ----

FASTACT_FN Vec<float> operator+(Vec<float> a, Vec<float> b) { return _mm512_add_ps(a.v, b.v); }
FASTACT_FN Vec<float> operator-(Vec<float> a, Vec<float> b) { return _mm512_sub_ps(a.v, b.v); }
FASTACT_FN Vec<float> operator*(Vec<float> a, Vec<float> b) { return _mm512_mul_ps(a.v, b.v); }
FASTACT_FN Vec<float> operator/(Vec<float> a, Vec<float> b) { return _mm512_div_ps(a.v, b.v); }
FASTACT_FN Vec<float> operator-(Vec<float> a) { return _mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f)); }
FASTACT_FN Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm512_fmadd_ps(a.v, b.v, c.v);
}
FASTACT_FN Vec<float> fnma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm512_fnmadd_ps(a.v, b.v, c.v);
}
FASTACT_FN Vec<float> min(Vec<float> a, Vec<float> b) { return _mm512_min_ps(a.v, b.v); }
FASTACT_FN Vec<float> max(Vec<float> a, Vec<float> b) { return _mm512_max_ps(a.v, b.v); }
FASTACT_FN Vec<float> abs(Vec<float> a) {
  return _mm512_and_ps(a.v, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff)));
}
FASTACT_FN Vec<float> copysign(Vec<float> magnitude, Vec<float> sign) {
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(magnitude.v),
                                                       _mm512_castps_si512(sign.v),
                                                       _mm512_set1_epi32(INT32_MIN), 0xd8));
}
FASTACT_FN Vec<float> round(Vec<float> a) {
  return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// A fraction in n is rounded down.
FASTACT_FN Vec<float> scale(Vec<float> a, Vec<float> n) { return _mm512_scalef_ps(a.v, n.v); }

// 2^n for n from -126 to 127, a fraction rounded down.
FASTACT_FN Vec<float> power_of_two(Vec<float> n) {
  return _mm512_scalef_ps(_mm512_set1_ps(1.0f), n.v);
}
// a 2^n for a normal number |a| in [0.1, 120] and n <= 57, a fraction rounded down; 0 and
// subnormal results, too.
FASTACT_FN Vec<float> scale_down(Vec<float> a, Vec<float> n) { return scale(a, n); }
FASTACT_FN LaneMask<float> operator<(Vec<float> a, Vec<float> b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
}
FASTACT_FN LaneMask<float> operator<=(Vec<float> a, Vec<float> b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)};
}
FASTACT_FN LaneMask<float> operator>(Vec<float> a, Vec<float> b) { return b < a; }
FASTACT_FN LaneMask<float> operator>=(Vec<float> a, Vec<float> b) { return b <= a; }
FASTACT_FN LaneMask<float> operator==(Vec<float> a, Vec<float> b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)};
}
FASTACT_FN LaneMask<float> operator!=(Vec<float> a, Vec<float> b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ)};
}
FASTACT_FN LaneMask<float> isnan(Vec<float> a) {
  return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)};
}
FASTACT_FN Vec<float> select(LaneMask<float> mask, Vec<float> if_true, Vec<float> if_false) {
  return _mm512_mask_blend_ps(mask.m, if_false.v, if_true.v);
}

FASTACT_FN Vec<int32_t> to_bits(Vec<float> a) { return _mm512_castps_si512(a.v); }
template <class V>
FASTACT_FN V from_bits(Vec<int32_t> a) {
  return _mm512_castsi512_ps(a.v);
}

// table[index mod kEntries]; the table is aligned to 64 bytes.
template <class V, int kEntries>
FASTACT_FN V lookup(const float (&table)[kEntries], Vec<int32_t> index) {
  static_assert(kEntries == 16 || kEntries == 32, "one register or two");
  if constexpr (kEntries == 16) {
    return _mm512_permutexvar_ps(index.v, _mm512_load_ps(table));
  } else {
    return _mm512_permutex2var_ps(_mm512_load_ps(table), index.v, _mm512_load_ps(table + 16));
  }
}

FASTACT_FN float horizontal_sum(Vec<float> a) { return _mm512_reduce_add_ps(a.v); }
FASTACT_FN float horizontal_max(Vec<float> a) { return _mm512_reduce_max_ps(a.v); }

// The sums of eight registers: halves of two registers are added as one, and so on, which takes
// three instructions a sum instead of eight.
FASTACT_FN void sum_eight(const Vec<float>* v, float* to) {
  __m512 halves[4];  // 8 lanes of each register
  FASTACT_UNROLL for (int i = 0; i < 4; ++i) {
    const __m512 a = v[2 * i].v, b = v[2 * i + 1].v;
    halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
  __m512d quarters[2];  // 4 lanes of each
  FASTACT_UNROLL for (int i = 0; i < 2; ++i) {
    const __m512 a = halves[2 * i], b = halves[2 * i + 1];
    quarters[i] = _mm512_castps_pd(
        _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd)));
  }
  // 2 lanes of each, in the order 0 4 1 5 2 6 3 7
  const __m512 pairs =
      _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(quarters[0], quarters[1])),
                    _mm512_castpd_ps(_mm512_unpackhi_pd(quarters[0], quarters[1])));
  const __m512 sums = _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0xb1));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm256_storeu_ps(to, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, sums)));
}
template <>
constexpr bool kSumsTogether<Vec<float>> = true;

// ---- double ----

FASTACT_FN Vec<double> operator+(Vec<double> a, Vec<double> b) { return _mm512_add_pd(a.v, b.v); }
FASTACT_FN Vec<double> operator-(Vec<double> a, Vec<double> b) { return _mm512_sub_pd(a.v, b.v); }
FASTACT_FN Vec<double> operator*(Vec<double> a, Vec<double> b) { return _mm512_mul_pd(a.v, b.v); }
FASTACT_FN Vec<double> operator/(Vec<double> a, Vec<double> b) { return _mm512_div_pd(a.v, b.v); }
FASTACT_FN Vec<double> operator-(Vec<double> a) { return _mm512_xor_pd(a.v, _mm512_set1_pd(-0.0)); }
FASTACT_FN Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm512_fmadd_pd(a.v, b.v, c.v);
}
FASTACT_FN Vec<double> fnma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm512_fnmadd_pd(a.v, b.v, c.v);
}
FASTACT_FN Vec<double> min(Vec<double> a, Vec<double> b) { return _mm512_min_pd(a.v, b.v); }
FASTACT_FN Vec<double> max(Vec<double> a, Vec<double> b) { return _mm512_max_pd(a.v, b.v); }
FASTACT_FN Vec<double> abs(Vec<double> a) {
  return _mm512_and_pd(a.v, _mm512_castsi512_pd(_mm512_set1_epi64(INT64_MAX)));
}
FASTACT_FN Vec<double> copysign(Vec<double> magnitude, Vec<double> sign) {
  return _mm512_castsi512_pd(_mm512_ternarylogic_epi64(_mm512_castpd_si512(magnitude.v),
                                                       _mm512_castpd_si512(sign.v),
                                                       _mm512_set1_epi64(INT64_MIN), 0xd8));
}
FASTACT_FN Vec<double> round(Vec<double> a) {
  return _mm512_roundscale_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
FASTACT_FN Vec<double> scale(Vec<double> a, Vec<double> n) { return _mm512_scalef_pd(a.v, n.v); }

FASTACT_FN LaneMask<double> operator<(Vec<double> a, Vec<double> b) {
  return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ)};
}
FASTACT_FN LaneMask<double> operator<=(Vec<double> a, Vec<double> b) {
  return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_LE_OQ)};
}
FASTACT_FN LaneMask<double> operator>(Vec<double> a, Vec<double> b) { return b < a; }
FASTACT_FN LaneMask<double> operator>=(Vec<double> a, Vec<double> b) { return b <= a; }
FASTACT_FN LaneMask<double> operator==(Vec<double> a, Vec<double> b) {
  return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ)};
}
FASTACT_FN LaneMask<double> operator!=(Vec<double> a, Vec<double> b) {
  return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_NEQ_UQ)};
}
FASTACT_FN LaneMask<double> isnan(Vec<double> a) {
  return {_mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q)};
}
FASTACT_FN Vec<double> select(LaneMask<double> mask, Vec<double> if_true, Vec<double> if_false) {
  return _mm512_mask_blend_pd(mask.m, if_false.v, if_true.v);
}

FASTACT_FN Vec<int64_t> to_bits(Vec<double> a) { return _mm512_castpd_si512(a.v); }
template <class V>
FASTACT_FN V from_bits(Vec<int64_t> a) {
  return _mm512_castsi512_pd(a.v);
}

FASTACT_FN double horizontal_sum(Vec<double> a) { return _mm512_reduce_add_pd(a.v); }
FASTACT_FN double horizontal_max(Vec<double> a) { return _mm512_reduce_max_pd(a.v); }

// The lanes of a float vector as two vectors of double lanes, and back (rounded once).
FASTACT_FN void split(Vec<float> a, Vec<double>* low, Vec<double>* high) {
  *low = _mm512_cvtps_pd(_mm512_castps512_ps256(a.v));
  *high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1));
}
FASTACT_FN Vec<float> join(Vec<double> low, Vec<double> high) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low.v)), _mm512_cvtpd_ps(high.v),
                            1);
}

// ---- masks and integers ----

template <class T>
FASTACT_FN LaneMask<T> operator&(LaneMask<T> a, LaneMask<T> b) {
  return {static_cast<decltype(a.m)>(a.m & b.m)};
}
template <class T>
FASTACT_FN LaneMask<T> operator|(LaneMask<T> a, LaneMask<T> b) {
  return {static_cast<decltype(a.m)>(a.m | b.m)};
}
template <class T>
FASTACT_FN LaneMask<T> operator!(LaneMask<T> a) {
  return {static_cast<decltype(a.m)>(~a.m)};
}
template <class T>
FASTACT_FN bool any(LaneMask<T> a) {
  return a.m != 0;
}

FASTACT_FN Vec<int32_t> operator+(Vec<int32_t> a, Vec<int32_t> b) {
  return _mm512_add_epi32(a.v, b.v);
}
FASTACT_FN Vec<int32_t> operator-(Vec<int32_t> a, Vec<int32_t> b) {
  return _mm512_sub_epi32(a.v, b.v);
}
FASTACT_FN Vec<int32_t> operator&(Vec<int32_t> a, Vec<int32_t> b) {
  return _mm512_and_si512(a.v, b.v);
}
FASTACT_FN Vec<int32_t> operator|(Vec<int32_t> a, Vec<int32_t> b) {
  return _mm512_or_si512(a.v, b.v);
}
FASTACT_FN Vec<int32_t> max(Vec<int32_t> a, Vec<int32_t> b) { return _mm512_max_epi32(a.v, b.v); }
template <int kBits>
FASTACT_FN Vec<int32_t> shift_left(Vec<int32_t> a) {
  return _mm512_slli_epi32(a.v, kBits);
}
template <int kBits>
FASTACT_FN Vec<int32_t> shift_right(Vec<int32_t> a) {
  return _mm512_srli_epi32(a.v, kBits);
}
FASTACT_FN bool any_greater(Vec<int32_t> a, int32_t limit) {
  return _mm512_cmpgt_epi32_mask(a.v, _mm512_set1_epi32(limit)) != 0;
}

FASTACT_FN Vec<int64_t> operator+(Vec<int64_t> a, Vec<int64_t> b) {
  return _mm512_add_epi64(a.v, b.v);
}
FASTACT_FN Vec<int64_t> operator-(Vec<int64_t> a, Vec<int64_t> b) {
  return _mm512_sub_epi64(a.v, b.v);
}
FASTACT_FN Vec<int64_t> operator&(Vec<int64_t> a, Vec<int64_t> b) {
  return _mm512_and_si512(a.v, b.v);
}
FASTACT_FN Vec<int64_t> operator|(Vec<int64_t> a, Vec<int64_t> b) {
  return _mm512_or_si512(a.v, b.v);
}
template <int kBits>
FASTACT_FN Vec<int64_t> shift_left(Vec<int64_t> a) {
  return _mm512_slli_epi64(a.v, kBits);
}
template <int kBits>
FASTACT_FN Vec<int64_t> shift_right(Vec<int64_t> a) {
  return _mm512_srli_epi64(a.v, kBits);
}

// Rows become columns.
FASTACT_FN void transpose(Vec<float> (&r)[16]) {
  __m512 pairs[16];
  FASTACT_UNROLL for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    pairs[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  __m512d fours[16];  // [i + c]: rows i to i + 3 of the columns c, c + 4, c + 8, c + 12
  FASTACT_UNROLL for (int i = 0; i < 16; i += 4) {
    FASTACT_UNROLL for (int c = 0; c < 2; ++c) {
      const __m512d low = _mm512_castps_pd(pairs[i + c]);
      const __m512d high = _mm512_castps_pd(pairs[i + c + 2]);
      fours[i + 2 * c] = _mm512_unpacklo_pd(low, high);
      fours[i + 2 * c + 1] = _mm512_unpackhi_pd(low, high);
    }
  }
  FASTACT_UNROLL for (int c = 0; c < 4; ++c) {
    const __m512 a = _mm512_castpd_ps(fours[c]);
    const __m512 b = _mm512_castpd_ps(fours[c + 4]);
    const __m512 d = _mm512_castpd_ps(fours[c + 8]);
    const __m512 e = _mm512_castpd_ps(fours[c + 12]);
    const __m512 even_top = _mm512_shuffle_f32x4(a, b, 0x88);
    const __m512 even_bottom = _mm512_shuffle_f32x4(d, e, 0x88);
    const __m512 odd_top = _mm512_shuffle_f32x4(a, b, 0xdd);
    const __m512 odd_bottom = _mm512_shuffle_f32x4(d, e, 0xdd);
    r[c] = _mm512_shuffle_f32x4(even_top, even_bottom, 0x88);
    r[c + 4] = _mm512_shuffle_f32x4(odd_top, odd_bottom, 0x88);
    r[c + 8] = _mm512_shuffle_f32x4(even_top, even_bottom, 0xdd);
    r[c + 12] = _mm512_shuffle_f32x4(odd_top, odd_bottom, 0xdd);
  }
}
FASTACT_FN void transpose(Vec<double> (&r)[8]) {
  __m512d pairs[8];
  FASTACT_UNROLL for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm512_unpacklo_pd(r[i].v, r[i + 1].v);
    pairs[i + 1] = _mm512_unpackhi_pd(r[i].v, r[i + 1].v);
  }
  FASTACT_UNROLL for (int c = 0; c < 2; ++c) {
    const __m512d even_top = _mm512_shuffle_f64x2(pairs[c], pairs[c + 2], 0x88);
    const __m512d even_bottom = _mm512_shuffle_f64x2(pairs[c + 4], pairs[c + 6], 0x88);
    const __m512d odd_top = _mm512_shuffle_f64x2(pairs[c], pairs[c + 2], 0xdd);
    const __m512d odd_bottom = _mm512_shuffle_f64x2(pairs[c + 4], pairs[c + 6], 0xdd);
    r[c] = _mm512_shuffle_f64x2(even_top, even_bottom, 0x88);
    r[c + 2] = _mm512_shuffle_f64x2(odd_top, odd_bottom, 0x88);
    r[c + 4] = _mm512_shuffle_f64x2(even_top, even_bottom, 0xdd);
    r[c + 6] = _mm512_shuffle_f64x2(odd_top, odd_bottom, 0xdd);
  }
}

// Lanes that hold two neighbouring bfloat16 numbers each: c + a.low b.low + a.high b.high.
// Subnormal numbers count as 0, as in every product of this instruction.
#if defined(__AVX512BF16__)
constexpr bool kHasDotPairs = true;
FASTACT_FN Vec<float> dot_pairs(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm512_dpbf16_ps(c.v, (__m512bh)a.v, (__m512bh)b.v);
}
FASTACT_FN Vec<float> load_pairs(const BFloat16* p) { return _mm512_loadu_ps(p); }
// Lane i holds low[i] and, above it, high[i], or 0 without `high`; the first n lanes, others are 0.
FASTACT_FN Vec<float> interleave_pairs(const BFloat16* low, const BFloat16* high, int n) {
  const auto first = static_cast<__mmask16>((1u << n) - 1);
  const auto load = [&](const BFloat16* p) FASTACT_LAMBDA {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first, p));
  };
  const __m512i below = load(low);
  return _mm512_castsi512_ps(high ? _mm512_or_si512(below, _mm512_slli_epi32(load(high), 16))
                                  : below);
}
// The first n numbers; others are 0.
FASTACT_FN Vec<float> load_pairs(const BFloat16* p, int n) {
  return _mm512_castsi512_ps(
      _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p));
}
#else
constexpr bool kHasDotPairs = false;
#endif

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
