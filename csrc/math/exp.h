// exp, expm1 and the product f * e^x.
#pragma once

#include "math/cells.h"
#include "math/scalar.h"
#include "math/tables.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// c[0] + c[1] x + ...
template <class W, int kTerms>
FASTACT_FN W polynomial(const double (&c)[kTerms], W x) {
  W sum(c[kTerms - 1]);
  FASTACT_UNROLL for (int i = kTerms - 2; i >= 0; --i) sum = fma(sum, x, W(c[i]));
  return sum;
}

// Beyond +-kExpLimit, e^x rounds to 0 or infinity in the type that W computes for, and in W itself
// stays finite and normal, if W is wider than that type.
template <class W>
constexpr double kExpLimit = kIsShort<W> ? 200 : kIsDouble<W> ? 760 : 110;

// x = n ln(2) + r with |r| <= ln(2) / 2, and tail(r) = e^r - 1. Double lanes, |x| <= 1000.
template <class W>
struct ExpParts {
  W n;
  W tail;
  IntOf<W> n_bits;  // n in the low bits
};

// With `rest`, of x + rest, where |rest| < 2^-10.
template <class W>
FASTACT_FN ExpParts<W> exp_parts(W x, W rest = W(0)) {
  // Added to 1.5 * 2^52, a number loses its fraction and stands in the low bits as an integer.
  const W shift(0x1.8p52);
  const W shifted = fma(x, W(0x1.71547652b82fep0), shift);
  const W n = shifted - shift;
  if constexpr (kIsShort<W>) {
    const W r = fnma(n, W(0x1.62e42fefa39efp-1), x) + rest;
    return {n, fma(r * r, polynomial(tables::kExpShort, r), r), to_bits(shifted)};
  } else {
    // The high part of ln(2) ends in zeros, so that n times it is exact.
    const W high = fnma(n, W(0x1.62e42feep-1), x);
    const W r = fnma(n, W(0x1.a39ef35793c76p-33), high) + rest;
    return {n, fma(r * r, polynomial(tables::kExpFull, r), r), to_bits(shifted)};
  }
}

namespace lookup {

template <class V>
FASTACT_FN V exp(V x) {
  const Sixteenths<V> s = sixteenths(x);
  const V power = lookup16<V>(tables::kExp16[0], s.index);
  const V q = fma(fma(V(tables::kExp16Cube), s.r, V(tables::kExp16Square)), s.r, V(1));
  return scale(fma(power * s.r, q, power), s.n);
}

// For x <= 88; the sign of 0 is lost. With p = 2^n in the table's high and low part and
// t = e^r - 1: (p - 1) + p t, p - 1 in two parts, since p t may be as small as what rounding loses.
template <class V>
FASTACT_FN V expm1(V x) {
  const Sixteenths<V> s = sixteenths(x);
  const V high = lookup16<V>(tables::kExp16[0], s.index);
  const V low = lookup16<V>(tables::kExp16[1], s.index);
  V q = fma(V(tables::kExpm1Fourth), s.r, V(tables::kExpm1Cube));
  q = fma(q, s.r, V(tables::kExpm1Square));
  const V t = fma(s.r * s.r, q, s.r);
  const V power = scale(V(1), s.n);
  const V less = fma(power, high, V(-1));
  const V lost = fma(power, high, -(less + V(1)));
  return less + fma(power, fma(high, t, low), lost);
}

}  // namespace lookup

// e^x. Max error: 1 ULP (float), 1.5 ULP (double), subnormal results included.
template <class V>
FASTACT_FN V exp(V x) {
  if constexpr (kIsScalar<V>) {
    return library::exp(x);
  } else if constexpr (kHasLookup<V>) {
    return lookup::exp(x);
  } else if constexpr (!kIsDouble<V>) {
    return narrow<V>(exp(widen<Short>(x)));
  } else {
    const V held = max(V(-kExpLimit<V>), min(V(kExpLimit<V>), x));
    const ExpParts<V> e = exp_parts(held);
    const V m = e.tail + V(1);
    if constexpr (kIsShort<V>) {
      return from_bits<V>(to_bits(m) + shift_left<52>(e.n_bits));
    } else {
      return scale(m, e.n);
    }
  }
}

// f * e^(x + rest), also where that power alone would be subnormal or 0; |rest| < 2^-10. |f| is at
// most 2^20 where x < -80.
template <class W>
FASTACT_FN W exp_product(W f, W x, W rest = W(0)) {
  if constexpr (kIsScalar<W>) {
    const W limit(kIsDouble<W> ? -700 : -80);
    const W product = f * library::exp(max(limit, x));
    return fma(product, rest, product) * library::exp(min(W(0), x - limit));
  } else if constexpr (kIsShort<W>) {
    return f * exp(x);
  } else {
    const ExpParts<W> e = exp_parts(max(W(-kExpLimit<W>), min(W(kExpLimit<W>), x)), rest);
    return scale(fma(f, e.tail, f), e.n);
  }
}

// e^x - 1. Max error: 1 ULP (float), 2 ULP (double).
template <class V>
FASTACT_FN V expm1(V x) {
  if constexpr (kIsScalar<V>) {
    return library::expm1(x);
  } else if constexpr (!kIsDouble<V>) {
    return narrow<V>(expm1(widen<Short>(x)));
  } else {
    const V held = max(V(-40), min(V(kIsShort<V> ? 200 : 710), x));
    const ExpParts<V> e = exp_parts(held);
    // With half of 2^n, since 2^1024 is infinity.
    const V half = from_bits<V>(shift_left<52>(to_bits(e.n + V(0x1.8p52 + 1022))));
    return copysign(fma(half, e.tail, half - V(0.5)) * V(2), x);
  }
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
