// tanh and x - tanh(x).
#pragma once

#include "math/exp.h"
#include "math/scalar.h"
#include "math/table_lookup.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

namespace by_table {

template <class V>
FASTACT_FN V tanh(V x) {
  // From 9.01 on the result is 1. The exponent and two bits of the mantissa number the cells.
  const V a = min(V(9.015f), abs(x));
  const IntOf<V> cell =
      max(shift_right<Tables<V>::kTanhShift>(to_bits(a)), IntOf<V>(Tables<V>::kTanhLowest));
  const V d = a - lookup<V>(Tables<V>::kTanh[0], cell);
  return copysign(cell_polynomial<1>(Tables<V>::kTanh, cell, d), x);
}

template <class V>
FASTACT_FN V tanhshrink(V x) {
  const V a = abs(x);
  const IntOf<V> cell = max(shift_right<Tables<V>::kTanhShift>(to_bits(min(V(9.015f), a))),
                            IntOf<V>(Tables<V>::kTanhLowest));
  const V d = a - lookup<V>(Tables<V>::kTanhshrink[0], cell);
  V y = cell_polynomial<1>(Tables<V>::kTanhshrink, cell, d);
  // In the first cell a^3 (1/3 - ...): three products, whose roundings would add up to 3 ULP, so
  // that the first two are carried in two parts.
  const V square = a * a;
  const V factor = polynomial(Tables<V>::kTanhshrinkPolynomial, square);
  const V product = square * factor;
  const V lost = fma(fma(a, a, -square), factor, fma(square, factor, -product));
  y = select(a < V(Tables<V>::kTanhshrinkFirst), fma(a, product, a * lost), y);
  return copysign(select(a < V(9.01f), y, a - V(1)), x);
}

}  // namespace by_table

// Max error: 1 ULP (float), 3 ULP (double).
template <class V>
FASTACT_FN V tanh(V x) {
  if constexpr (kIsScalar<V>) {
    return library::tanh(x);
  } else if constexpr (kHasLookup<V>) {
    return by_table::tanh(x);
  } else if constexpr (!kIsDouble<V>) {
    return narrow<V>(tanh(widen<Short>(x)));
  } else {
    const V twice = min(V(40), abs(x) + abs(x));
    const V e = expm1(twice);
    return copysign(e / (e + V(2)), x);
  }
}

// x - tanh(x). Max error: 2 ULP (float), 4 ULP (double).
template <class V>
FASTACT_FN V tanhshrink(V x) {
  if constexpr (kHasLookup<V>) {
    return by_table::tanhshrink(x);
  } else if constexpr (!kIsScalar<V> && !kIsDouble<V>) {
    return narrow<V>(tanhshrink(widen<Short>(x)));
  } else {
    // The difference cancels for small x. There, tanh(x) = x / (1 + K) and x - tanh(x) =
    // x K / (1 + K) with Gauss's continued fraction K = x^2 / (3 + x^2 / (5 + x^2 / (7 + ...))),
    // whose terms are all positive; cut off after 25, it is exact to 2^-60 up to |x| = 1.5.
    const V z = min(V(2.25), x * x);
    V above(1);  // numerator and denominator of the fraction's inner part
    V below(25);
    FASTACT_UNROLL for (int odd = 23; odd >= 3; odd -= 2) {
      const V inner = above;
      above = below;
      below = fma(V(odd), below, z * inner);
    }
    const V k = z * above;
    const V small = x * k / (below + k);
    return select(abs(x) < V(1.5), small, x - tanh(x));
  }
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
