// The vocabulary that the formulas of math/ are written in, for one plain float or double: with it
// a formula runs on CUDA, and on the host where one value is wanted. cpu/simd/ has the same words
// for vectors.
//
// exp, tanh and their like come from CUDA's (on the host: the C) mathematical library here; the
// formulas choose by `kIsScalar`.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "math/config.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

#if defined(__CUDA_ARCH__) || defined(__FMA__)
constexpr bool kScalarFma = true;
#else
constexpr bool kScalarFma = false;
#endif

// What a formula may ask about its type V: one scalar, a vector, or a Pack of vectors.
template <class V>
struct Traits {
  using Scalar = typename V::scalar;
  using Int = typename V::Int;
  using Mask = typename V::Mask;
  static constexpr bool is_scalar = false;
  static constexpr int lookup_entries = V::lookup_entries;
  static constexpr bool has_fma = V::has_fma;
};
template <>
struct Traits<float> {
  using Scalar = float;
  using Int = int32_t;
  using Mask = bool;
  static constexpr bool is_scalar = true;
  static constexpr int lookup_entries = 0;
  static constexpr bool has_fma = kScalarFma;
};
template <>
struct Traits<double> {
  using Scalar = double;
  using Int = int64_t;
  using Mask = bool;
  static constexpr bool is_scalar = true;
  static constexpr int lookup_entries = 0;
  static constexpr bool has_fma = kScalarFma;
};

template <class V>
using ScalarOf = typename Traits<V>::Scalar;
template <class V>
using IntOf = typename Traits<V>::Int;
template <class V>
using MaskOf = typename Traits<V>::Mask;
template <class V>
constexpr bool kIsScalar = Traits<V>::is_scalar;
// Whether fma() rounds once.
template <class V>
constexpr bool kHasFma = Traits<V>::has_fma;
// Whether V looks up the entries of a table as fast as it multiplies; how many is lookup_entries.
template <class V>
constexpr bool kHasLookup = Traits<V>::lookup_entries > 0;
template <class V>
constexpr bool kIsDouble = sizeof(ScalarOf<V>) == sizeof(double);

// A parameter, which is given as a double, in all lanes.
template <class V>
FASTACT_FN V broadcast(double x) {
  return V(static_cast<ScalarOf<V>>(x));
}

// a * b + c, rounded once where the processor has such an instruction.
FASTACT_FN float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return ::fmaf(a, b, c);
#elif defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
FASTACT_FN double fma(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return ::fma(a, b, c);
#elif defined(__FMA__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}
// c - a * b, likewise.
FASTACT_FN float fnma(float a, float b, float c) { return fma(-a, b, c); }
FASTACT_FN double fnma(double a, double b, double c) { return fma(-a, b, c); }

// The second operand where one of the two is NaN, and where both are zeros of any sign: so a
// NaN in x passes through min(bound, x).
FASTACT_FN float min(float a, float b) { return a < b ? a : b; }
FASTACT_FN double min(double a, double b) { return a < b ? a : b; }
FASTACT_FN float max(float a, float b) { return a > b ? a : b; }
FASTACT_FN double max(double a, double b) { return a > b ? a : b; }

FASTACT_FN float abs(float x) { return ::fabsf(x); }
FASTACT_FN double abs(double x) { return ::fabs(x); }
FASTACT_FN float copysign(float magnitude, float sign) { return ::copysignf(magnitude, sign); }
FASTACT_FN double copysign(double magnitude, double sign) { return ::copysign(magnitude, sign); }
// The integral value next to x, to even where two are.
FASTACT_FN float round(float x) { return ::rintf(x); }
FASTACT_FN double round(double x) { return ::rint(x); }
FASTACT_FN bool isnan(float x) { return x != x; }
FASTACT_FN bool isnan(double x) { return x != x; }

template <class T>
FASTACT_FN T select(bool mask, T if_true, T if_false) {
  return mask ? if_true : if_false;
}
FASTACT_FN bool any(bool mask) { return mask; }

FASTACT_FN int32_t to_bits(float x) {
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
FASTACT_FN int64_t to_bits(double x) {
  int64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
// from_bits<V>(bits): the inverse of to_bits.
template <class V>
FASTACT_FN float from_bits(int32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
template <class V>
FASTACT_FN double from_bits(int64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
// What rounding a * b to `product` lost.
template <class V>
FASTACT_FN V product_rest(V a, V b, V product) {
  if constexpr (kHasFma<V>) {
    return fma(a, b, -product);
  } else if constexpr (!kIsDouble<V>) {
    return static_cast<V>(static_cast<double>(a) * b - product);
  } else {
    // Dekker's way: factors of 26 bits have exact products.
    const IntOf<V> mask(~int64_t{0x7ffffff});
    const V a_high = from_bits<V>(to_bits(a) & mask);
    const V b_high = from_bits<V>(to_bits(b) & mask);
    const V a_low = a - a_high;
    const V b_low = b - b_high;
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
  }
}

// What rounding a + b to `sum` lost.
template <class V>
FASTACT_FN V sum_rest(V a, V b, V sum) {
  const V of_b = sum - a;
  return (a - (sum - of_b)) + (b - of_b);
}

// Logical shifts.
template <int kBits>
FASTACT_FN int32_t shift_left(int32_t x) {
  return static_cast<int32_t>(static_cast<uint32_t>(x) << kBits);
}
template <int kBits>
FASTACT_FN int64_t shift_left(int64_t x) {
  return static_cast<int64_t>(static_cast<uint64_t>(x) << kBits);
}
template <int kBits>
FASTACT_FN int32_t shift_right(int32_t x) {
  return static_cast<int32_t>(static_cast<uint32_t>(x) >> kBits);
}
template <int kBits>
FASTACT_FN int64_t shift_right(int64_t x) {
  return static_cast<int64_t>(static_cast<uint64_t>(x) >> kBits);
}

// table[index mod kEntries].
template <class V, int kEntries>
FASTACT_FN float lookup(const float (&table)[kEntries], int32_t index) {
  return table[index & (kEntries - 1)];
}

// x * 2^n for an integral n, at most +-252 in float and +-2044 in double (more counts as that); a
// subnormal result is rounded once.
FASTACT_FN float scale(float x, float n) {
  return ::ldexpf(x, static_cast<int>(max(-252.0f, min(252.0f, n))));
}
FASTACT_FN double scale(double x, double n) {
  return ::ldexp(x, static_cast<int>(max(-2044.0, min(2044.0, n))));
}

// How exact a function of double lanes has to be: to the last bits of a double, or only to those of
// the float that its argument was widened from.
struct Full {};
struct Short {};
// Whether W is such double lanes with a float in them: short polynomials are then enough.
template <class W>
constexpr bool kIsShort = false;

// widen<P>(x) gives the type that x's formula is evaluated in: float vectors become double lanes of
// precision P, everything else stays as it is. narrow<V>(w) comes back and rounds once.
template <class P>
FASTACT_FN float widen(float x) {
  return x;
}
template <class P>
FASTACT_FN double widen(double x) {
  return x;
}
template <class V, class W>
FASTACT_FN V narrow(W w) {
  if constexpr (std::is_same<V, W>::value) {
    return w;
  } else {
    V v;
    join(w, &v);
    return v;
  }
}

// The mathematical library, by one name for both types.
namespace library {

FASTACT_FN float exp(float x) { return ::expf(x); }
FASTACT_FN double exp(double x) { return ::exp(x); }
FASTACT_FN float expm1(float x) { return ::expm1f(x); }
FASTACT_FN double expm1(double x) { return ::expm1(x); }
FASTACT_FN float log(float x) { return ::logf(x); }
FASTACT_FN double log(double x) { return ::log(x); }
FASTACT_FN float log1p(float x) { return ::log1pf(x); }
FASTACT_FN double log1p(double x) { return ::log1p(x); }
FASTACT_FN float tanh(float x) { return ::tanhf(x); }
FASTACT_FN double tanh(double x) { return ::tanh(x); }
// The normal distribution function.
FASTACT_FN double normal_cdf(double x) {
#if defined(__CUDA_ARCH__)
  return ::normcdf(x);
#else
  return 0.5 * ::erfc(-0.70710678118654752 * x);
#endif
}
FASTACT_FN float normal_cdf(float x) {
#if defined(__CUDA_ARCH__)
  return ::normcdff(x);
#else
  return static_cast<float>(normal_cdf(static_cast<double>(x)));
#endif
}

}  // namespace library

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
