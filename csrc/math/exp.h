// exp, expm1 and the product f * e^x.
#pragma once

#include "math/scalar.h"
#include "math/table_lookup.h"
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

// f(x) near a root of it (tables::k...Root and ...AtRoot), `otherwise` elsewhere: without this, a
// small difference would keep no digits.
template <class W, int kTerms>
FASTACT_FN W near_root(const double (&root)[2], const double (&c)[kTerms], W x, W otherwise) {
  const W t = x - W(root[0]);
  return select(abs(t) < W(0.5), (t - W(root[1])) * polynomial(c, t), otherwise);
}

// Beyond +-kExpLimit, e^x rounds to 0 or infinity in the type that W computes for, and in W itself
// stays finite and normal, if W is wider than that type.
template <class W>
constexpr double kExpLimit = kIsShort<W>    ? 200
                             : kIsDouble<W> ? 760
                                            : 110;

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

namespace by_table {

template <class V>
FASTACT_FN V exp(V x) {
  using T = Tables<V>;
  const ExpSteps<V> s = exp_steps(max(V(-kTableExpLimit), min(V(kTableExpLimit), x)));
  const V power = lookup<V>(T::kExp[0], s.index);
  const V q = fma(polynomial(T::kExpPolynomial, s.r), s.r, V(1));
  return scale(fma(power * s.r, q, power), s.n);
}

// For x <= 0. With p = 2^n in the table's two parts and e^r = 1 + r + u: (p - 1) + p r + p u, p - 1
// in two parts, too, since p r may be as small as what rounding loses.
template <class V>
FASTACT_FN V expm1_of_negative(V x) {
  using T = Tables<V>;
  // Below -17.4 the result is -1. The error of n ln(2) is at most 2 * 10^-9 n, too small to count
  // beside p.
  const V held = max(V(-20), x);
  const V shifted = fma(held, V(0x1.715476p+0f), V(kExpShift<V>));
  const V n = shifted - V(kExpShift<V>);
  const V r = fnma(n, V(0x1.62e43p-1f), held);
  const V u = (r * r) * polynomial(T::kExpm1Polynomial, r);
  const V high = lookup<V>(T::kExp[0], to_bits(shifted));
  const V low = lookup<V>(T::kExp[1], to_bits(shifted));
  const V factor = power_of_two(n);
  const V power = factor * high;
  const V less = power - V(1);
  const V lost = power - (less + V(1));
  const V rest = fma(factor, fma(high, u, low), lost);
  return less + fma(power, r, rest);
}

}  // namespace by_table

// e^x. Max error: 1 ULP (float), 1.5 ULP (double), subnormal results included.
template <class V>
FASTACT_FN V exp(V x) {
  if constexpr (kIsScalar<V>) {
    return library::exp(x);
  } else if constexpr (kHasLookup<V>) {
    return by_table::exp(x);
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

// e^x - 1 for x <= 0; elsewhere the result means nothing, and the sign of a 0 is lost. Max error:
// 1 ULP (float), 3 ULP (double).
template <class V>
FASTACT_FN V expm1_of_negative(V x) {
  if constexpr (kIsScalar<V>) {
    return library::expm1(x);
  } else if constexpr (kHasLookup<V>) {
    return by_table::expm1_of_negative(x);
  } else if constexpr (!kIsDouble<V>) {
    return narrow<V>(expm1_of_negative(widen<Short>(x)));
  } else {
    const ExpParts<V> e = exp_parts(max(V(-40), x));
    const V power = from_bits<V>(shift_left<52>(to_bits(e.n + V(0x1.8p52 + 1023))));
    return fma(power, e.tail, power - V(1));
  }
}

// e^x - 1. Max error: 1 ULP (float), 3 ULP (double).
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
