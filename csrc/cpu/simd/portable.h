// The vocabulary of math/scalar.h for any processor: 16-byte vectors of 4 float or 2 double lanes,
// in the vector extension that GCC and Clang share, so that one text becomes SSE2, NEON or plain
// code. (As arrays of lanes, GCC 12 leaves most formulas scalar.)
//
// fma is a multiplication and an addition, rounded twice: a fused one would be a call to the C
// library here. The formulas evaluate float in double lanes, where that does not matter.
#pragma once

#include "cpu/simd/pack.h"
#include "math/half.h"
#include "math/scalar.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

namespace lanes {

using Float = float __attribute__((vector_size(16)));
using Double = double __attribute__((vector_size(16)));
using Int32 = int32_t __attribute__((vector_size(16)));
using Int64 = int64_t __attribute__((vector_size(16)));
using UInt32 = uint32_t __attribute__((vector_size(16)));
using UInt64 = uint64_t __attribute__((vector_size(16)));
using UInt16 = uint16_t __attribute__((vector_size(8)));

template <class To, class From>
FASTACT_FN To as(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  return reinterpret_cast<To>(from);
}

}  // namespace lanes

// All bits of a lane are equal.
template <>
struct LaneMask<float> {
  lanes::Int32 m;
};
template <>
struct LaneMask<double> {
  lanes::Int64 m;
};

template <>
struct Vec<int32_t> {
  using scalar = int32_t;
  lanes::Int32 v;
  Vec() = default;
  FASTACT_FN Vec(lanes::Int32 x) : v(x) {}
  FASTACT_FN explicit Vec(int32_t x) : v(lanes::Int32{x, x, x, x}) {}
};
template <>
struct Vec<int64_t> {
  using scalar = int64_t;
  lanes::Int64 v;
  Vec() = default;
  FASTACT_FN Vec(lanes::Int64 x) : v(x) {}
  FASTACT_FN explicit Vec(int64_t x) : v(lanes::Int64{x, x}) {}
};

template <>
struct Vec<float> {
  using scalar = float;
  using Int = Vec<int32_t>;
  using Mask = LaneMask<float>;
  static constexpr int size = 4;
  static constexpr bool has_lookup = false;
  static constexpr int lookup_entries = 0;
  static constexpr bool has_fma = false;

  lanes::Float v;

  Vec() = default;
  FASTACT_FN Vec(lanes::Float x) : v(x) {}
  FASTACT_FN explicit Vec(float x) : v(lanes::Float{x, x, x, x}) {}

  // Memory of any alignment; with n, only the first n lanes are touched, and others load as 0.
  static FASTACT_FN Vec load(const float* p) { return load_all<lanes::Float>(p); }
  static FASTACT_FN Vec load(const float* p, int n) { return load_some<lanes::Float>(p, n); }
  static FASTACT_FN Vec load(const BFloat16* p) { return bfloat16(load_all<lanes::UInt16>(p)); }
  static FASTACT_FN Vec load(const BFloat16* p, int n) {
    return bfloat16(load_some<lanes::UInt16>(p, n));
  }
  static FASTACT_FN Vec load(const Half* p) { return half(load_all<lanes::UInt16>(p)); }
  static FASTACT_FN Vec load(const Half* p, int n) { return half(load_some<lanes::UInt16>(p, n)); }

  FASTACT_FN void store(float* p) const { memcpy(p, &v, sizeof v); }
  FASTACT_FN void store(float* p, int n) const { store_some(p, v, n); }
  FASTACT_FN void store(BFloat16* p) const { store_all(p, bfloat16()); }
  FASTACT_FN void store(BFloat16* p, int n) const { store_some(p, bfloat16(), n); }
  FASTACT_FN void store(Half* p) const { store_all(p, half()); }
  FASTACT_FN void store(Half* p, int n) const { store_some(p, half(), n); }

 private:
  template <class L>
  static FASTACT_FN L load_all(const void* p) {
    L r;
    memcpy(&r, p, sizeof r);
    return r;
  }
  template <class L, class T>
  static FASTACT_FN L load_some(const T* p, int n) {
    T some[size] = {};
    for (int i = 0; i < n; ++i) some[i] = p[i];
    return load_all<L>(some);
  }
  template <class L>
  static FASTACT_FN void store_all(void* p, L x) {
    memcpy(p, &x, sizeof x);
  }
  template <class T, class L>
  static FASTACT_FN void store_some(T* p, L x, int n) {
    T some[size];
    store_all(some, x);
    for (int i = 0; i < n; ++i) p[i] = some[i];
  }

  // math/half.h's conversions, four at a time.
  static FASTACT_FN lanes::Float bfloat16(lanes::UInt16 x) {
    return lanes::as<lanes::Float>(__builtin_convertvector(x, lanes::UInt32) << 16);
  }
  FASTACT_FN lanes::UInt16 bfloat16() const {
    const lanes::UInt32 bits = lanes::as<lanes::UInt32>(v);
    const lanes::UInt32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const lanes::UInt32 quiet_nan = (bits >> 16) | 0x40;
    return __builtin_convertvector(v != v ? quiet_nan : rounded, lanes::UInt16);
  }
  static FASTACT_FN lanes::Float half(lanes::UInt16 x) {
    const lanes::UInt32 bits = __builtin_convertvector(x, lanes::UInt32);
    const lanes::UInt32 sign = (bits & 0x8000) << 16;
    const lanes::UInt32 magnitude = bits & 0x7fff;
    const lanes::Float value = lanes::as<lanes::Float>(magnitude << 13) * 0x1p112f;
    const lanes::UInt32 special =
        lanes::as<lanes::UInt32>(lanes::as<lanes::Int32>(magnitude) > 0x7bff) & 0x7f800000u;
    return lanes::as<lanes::Float>(lanes::as<lanes::UInt32>(value) | special | sign);
  }
  FASTACT_FN lanes::UInt16 half() const {
    const lanes::UInt32 bits = lanes::as<lanes::UInt32>(v);
    const lanes::UInt32 magnitude = bits & 0x7fffffff;
    const lanes::Int32 order = lanes::as<lanes::Int32>(magnitude);
    const lanes::UInt32 sign = (bits >> 16) & 0x8000;
    const lanes::UInt32 normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const lanes::UInt32 subnormal =
        lanes::as<lanes::UInt32>(lanes::as<lanes::Float>(magnitude) + 0.5f) - 0x3f000000u;
    lanes::UInt32 result = order < 0x38800000 ? subnormal : normal;
    result = order > 0x477fefff ? (lanes::UInt32{} + 0x7c00u) : result;
    result = order > 0x7f800000 ? (lanes::UInt32{} + 0x7e00u) : result;
    return __builtin_convertvector(result | sign, lanes::UInt16);
  }
};

template <>
struct Vec<double> {
  using scalar = double;
  using Int = Vec<int64_t>;
  using Mask = LaneMask<double>;
  static constexpr int size = 2;
  static constexpr bool has_lookup = false;
  static constexpr int lookup_entries = 0;
  static constexpr bool has_fma = false;

  lanes::Double v;

  Vec() = default;
  FASTACT_FN Vec(lanes::Double x) : v(x) {}
  FASTACT_FN explicit Vec(double x) : v(lanes::Double{x, x}) {}

  static FASTACT_FN Vec load(const double* p) {
    Vec r;
    memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  static FASTACT_FN Vec load(const double* p, int n) {
    return lanes::Double{n > 0 ? p[0] : 0.0, n > 1 ? p[1] : 0.0};
  }
  FASTACT_FN void store(double* p) const { memcpy(p, &v, sizeof v); }
  FASTACT_FN void store(double* p, int n) const {
    if (n > 0) p[0] = v[0];
    if (n > 1) p[1] = v[1];
  }
};

// What float and double spell alike. T: the lane; I: the integer vector of that size.
#define FASTACT_LANES(T, I, kAbs)                                                          \
  FASTACT_FN Vec<T> operator+(Vec<T> a, Vec<T> b) { return a.v + b.v; }                    \
  FASTACT_FN Vec<T> operator-(Vec<T> a, Vec<T> b) { return a.v - b.v; }                    \
  FASTACT_FN Vec<T> operator*(Vec<T> a, Vec<T> b) { return a.v * b.v; }                    \
  FASTACT_FN Vec<T> operator/(Vec<T> a, Vec<T> b) { return a.v / b.v; }                    \
  FASTACT_FN Vec<T> operator-(Vec<T> a) { return -a.v; }                                   \
  FASTACT_FN Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) { return a.v * b.v + c.v; }          \
  FASTACT_FN Vec<T> fnma(Vec<T> a, Vec<T> b, Vec<T> c) { return c.v - a.v * b.v; }         \
  FASTACT_FN Vec<T> min(Vec<T> a, Vec<T> b) { return a.v < b.v ? a.v : b.v; }              \
  FASTACT_FN Vec<T> max(Vec<T> a, Vec<T> b) { return a.v > b.v ? a.v : b.v; }              \
  FASTACT_FN LaneMask<T> operator<(Vec<T> a, Vec<T> b) { return {a.v < b.v}; }             \
  FASTACT_FN LaneMask<T> operator<=(Vec<T> a, Vec<T> b) { return {a.v <= b.v}; }           \
  FASTACT_FN LaneMask<T> operator>(Vec<T> a, Vec<T> b) { return {a.v > b.v}; }             \
  FASTACT_FN LaneMask<T> operator>=(Vec<T> a, Vec<T> b) { return {a.v >= b.v}; }           \
  FASTACT_FN LaneMask<T> operator==(Vec<T> a, Vec<T> b) { return {a.v == b.v}; }           \
  FASTACT_FN LaneMask<T> operator!=(Vec<T> a, Vec<T> b) { return {a.v != b.v}; }           \
  FASTACT_FN LaneMask<T> isnan(Vec<T> a) { return {a.v != a.v}; }                          \
  FASTACT_FN LaneMask<T> operator&(LaneMask<T> a, LaneMask<T> b) { return {a.m & b.m}; }   \
  FASTACT_FN LaneMask<T> operator|(LaneMask<T> a, LaneMask<T> b) { return {a.m | b.m}; }   \
  FASTACT_FN LaneMask<T> operator!(LaneMask<T> a) { return {~a.m}; }                       \
  FASTACT_FN bool any(LaneMask<T> a) {                                                     \
    const lanes::Int64 m = lanes::as<lanes::Int64>(a.m);                                   \
    return (m[0] | m[1]) != 0;                                                             \
  }                                                                                        \
  FASTACT_FN Vec<T> select(LaneMask<T> mask, Vec<T> if_true, Vec<T> if_false) {            \
    return mask.m ? if_true.v : if_false.v;                                                \
  }                                                                                        \
  FASTACT_FN Vec<I> to_bits(Vec<T> a) { return lanes::as<decltype(Vec<I>::v)>(a.v); }      \
  template <class V>                                                                       \
  FASTACT_FN V from_bits(Vec<I> a) {                                                       \
    return lanes::as<decltype(V::v)>(a.v);                                                 \
  }                                                                                        \
  FASTACT_FN Vec<I> operator+(Vec<I> a, Vec<I> b) { return a.v + b.v; }                    \
  FASTACT_FN Vec<I> operator-(Vec<I> a, Vec<I> b) { return a.v - b.v; }                    \
  FASTACT_FN Vec<I> operator&(Vec<I> a, Vec<I> b) { return a.v & b.v; }                    \
  FASTACT_FN Vec<I> operator|(Vec<I> a, Vec<I> b) { return a.v | b.v; }                    \
  FASTACT_FN Vec<T> abs(Vec<T> a) { return from_bits<Vec<T>>(to_bits(a) & Vec<I>(kAbs)); } \
  FASTACT_FN Vec<T> copysign(Vec<T> magnitude, Vec<T> sign) {                              \
    return from_bits<Vec<T>>((to_bits(magnitude) & Vec<I>(kAbs)) |                         \
                             (to_bits(sign) & Vec<I>(~kAbs)));                             \
  }

FASTACT_LANES(float, int32_t, INT32_MAX)
FASTACT_LANES(double, int64_t, INT64_MAX)
#undef FASTACT_LANES

template <int kBits>
FASTACT_FN Vec<int32_t> shift_left(Vec<int32_t> a) {
  return lanes::as<lanes::Int32>(lanes::as<lanes::UInt32>(a.v) << kBits);
}
template <int kBits>
FASTACT_FN Vec<int32_t> shift_right(Vec<int32_t> a) {
  return lanes::as<lanes::Int32>(lanes::as<lanes::UInt32>(a.v) >> kBits);
}
template <int kBits>
FASTACT_FN Vec<int64_t> shift_left(Vec<int64_t> a) {
  return lanes::as<lanes::Int64>(lanes::as<lanes::UInt64>(a.v) << kBits);
}
template <int kBits>
FASTACT_FN Vec<int64_t> shift_right(Vec<int64_t> a) {
  return lanes::as<lanes::Int64>(lanes::as<lanes::UInt64>(a.v) >> kBits);
}
FASTACT_FN Vec<int32_t> max(Vec<int32_t> a, Vec<int32_t> b) { return a.v > b.v ? a.v : b.v; }
FASTACT_FN bool any_greater(Vec<int32_t> a, int32_t limit) {
  return any(LaneMask<float>{a.v > limit});
}

// Added to 2^23 (2^52) and subtracted again, a magnitude becomes an integer; from there on all are.
FASTACT_FN Vec<float> round(Vec<float> a) {
  const Vec<float> shift(0x1p23f);
  const Vec<float> magnitude = abs(a);
  return select(magnitude < shift, copysign((magnitude + shift) - shift, a), a);
}
FASTACT_FN Vec<double> round(Vec<double> a) {
  const Vec<double> shift(0x1p52);
  const Vec<double> magnitude = abs(a);
  return select(magnitude < shift, copysign((magnitude + shift) - shift, a), a);
}

// Two factors, since one exponent field reaches neither the smallest subnormal number nor infinity;
// only the second multiplication can round. Added to `shift`, a small integer stands in the low
// bits as it is.
FASTACT_FN Vec<float> scale(Vec<float> a, Vec<float> n) {
  const Vec<float> held = max(Vec<float>(-252.0f), min(Vec<float>(252.0f), n));
  const Vec<float> half = round(held * Vec<float>(0.5f));
  const Vec<float> shift(0x1.8p23f + 127);
  const auto first = from_bits<Vec<float>>(shift_left<23>(to_bits(half + shift)));
  const auto rest = from_bits<Vec<float>>(shift_left<23>(to_bits((held - half) + shift)));
  return (a * first) * rest;
}
FASTACT_FN Vec<double> scale(Vec<double> a, Vec<double> n) {
  const Vec<double> held = max(Vec<double>(-2044.0), min(Vec<double>(2044.0), n));
  const Vec<double> half = round(held * Vec<double>(0.5));
  const Vec<double> shift(0x1.8p52 + 1023);
  const auto first = from_bits<Vec<double>>(shift_left<52>(to_bits(half + shift)));
  const auto rest = from_bits<Vec<double>>(shift_left<52>(to_bits((held - half) + shift)));
  return (a * first) * rest;
}

FASTACT_FN float horizontal_sum(Vec<float> a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
FASTACT_FN double horizontal_sum(Vec<double> a) { return a.v[0] + a.v[1]; }
FASTACT_FN float horizontal_max(Vec<float> a) {
  return max(max(a.v[0], a.v[2]), max(a.v[1], a.v[3]));
}
FASTACT_FN double horizontal_max(Vec<double> a) { return max(a.v[0], a.v[1]); }

// The lanes of a float vector as two vectors of double lanes, and back (rounded once).
FASTACT_FN void split(Vec<float> a, Vec<double>* low, Vec<double>* high) {
  *low = lanes::Double{a.v[0], a.v[1]};
  *high = lanes::Double{a.v[2], a.v[3]};
}
FASTACT_FN Vec<float> join(Vec<double> low, Vec<double> high) {
  return lanes::Float{static_cast<float>(low.v[0]), static_cast<float>(low.v[1]),
                      static_cast<float>(high.v[0]), static_cast<float>(high.v[1])};
}

// Rows become columns.
template <class T, int N>
FASTACT_FN void transpose(Vec<T> (&r)[N]) {
  static_assert(N == Vec<T>::size, "a square");
  for (int i = 0; i < N; ++i) {
    for (int j = 0; j < i; ++j) {
      const T lane = r[i].v[j];
      r[i].v[j] = r[j].v[i];
      r[j].v[i] = lane;
    }
  }
}

constexpr bool kHasDotPairs = false;

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
