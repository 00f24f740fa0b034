// Functions of float by table look-up, for widths that have a fast one: an interval is cut into 32
// cells, and in each the function is a polynomial in the distance from a point of the cell. A
// coefficient is looked up in two registers by one instruction.
//
// Where the bound is 1 ULP that point is chosen so that the function's value there is nearly a float
// (Gal, 1986): the one rounding that counts is then the last. Where it is 2 ULP, the points are the
// multiples of the cell's width.
#pragma once

#include "math/scalar.h"
#include "math/tables.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// The multiple of a power of two that is nearest to a, and the number of that multiple, mod 32.
template <class V>
struct GridPoint {
  V point;
  IntOf<V> index;
};

template <class V>
FASTACT_FN GridPoint<V> grid_point(V a, float width) {
  // Added to 1.5 * 2^23 widths, a is rounded to widths, and the low bits count them.
  const V shift(0x1.8p23f * width);
  const V shifted = a + shift;
  return {shifted - shift, to_bits(shifted)};
}

// c[kFirst] + c[kFirst + 1] d + ... up to the last row.
template <int kFirst, class V, int kRows>
FASTACT_FN V cell_polynomial(const float (&c)[kRows][32], IntOf<V> index, V d) {
  V sum = lookup32<V>(c[kRows - 1], index);
  FASTACT_UNROLL for (int k = kRows - 2; k >= kFirst; --k) {
    sum = fma(sum, d, lookup32<V>(c[k], index));
  }
  return sum;
}

// y where |x| <= limit, else Tail::apply(x), where NaN is outside.
//
// The tails are computed for a whole group as soon as one of its lanes needs them, and two
// registers at a time: all at once would not fit, and spilling them doubles the time; one at a time,
// their long chains would wait for themselves.
template <class Tail, class V>
FASTACT_FN V with_tail(V x, V y, float limit) {
  if (FASTACT_UNLIKELY(any_greater(to_bits(abs(x)), to_bits(limit)))) {
    return map_pairs(x, y, [limit](auto part, auto inside) FASTACT_LAMBDA {
      using P = decltype(part);
      return select(abs(part) <= P(limit), inside, Tail::apply(part));
    });
  }
  return y;
}

// x = n ln(2) + r with n a multiple of 1/16, |r| <= ln(2) / 32, and 2^(n - floor(n)) in entry
// `index` of tables::kExp16. Where |x| is large r means nothing, but stays small.
template <class V>
struct Sixteenths {
  V n;
  V r;
  IntOf<V> index;
};

template <class V>
FASTACT_FN Sixteenths<V> sixteenths(V x) {
  const V shift(0x1.8p19f);
  const V shifted = fma(x, V(0x1.715476p+0f), shift);
  const V n = shifted - shift;
  const V r = fnma(n, V(-0x1.05c61p-29f), fnma(n, V(0x1.62e43p-1f), x));
  return {n, hold(r, V(0x1p-5f)), to_bits(shifted)};
}

// e^x = (high + low) 2^n, n rounded down as scale() does; high + low has some 30 bits.
template <class V>
struct TableExp {
  V high;
  V low;
  V n;
};

template <class V>
FASTACT_FN TableExp<V> table_exp(Sixteenths<V> s) {
  const V high = lookup16<V>(tables::kExp16[0], s.index);
  const V q = fma(fma(V(tables::kExp16Cube), s.r, V(tables::kExp16Square)), s.r, V(1));
  return {high, fma(high * s.r, q, lookup16<V>(tables::kExp16[1], s.index)), s.n};
}

// e^x where it is above 2^-30, else some small number: never a subnormal one, which would cost some
// 30 cycles in what is computed from it (AMD Zen 5).
template <class V>
FASTACT_FN V rough(TableExp<V> e) {
  return scale(e.high + e.low, max(V(-30), e.n));
}

// f e^x (1 - c), c small, rounded little more than once; subnormal results too.
template <class V>
FASTACT_FN V times(V f, TableExp<V> e, V c) {
  const V high = f * e.high;
  const V low = fma(f, e.low, fma(f, e.high, -high));
  return scale(high + fnma(f * (e.high + e.low), c, low), e.n);
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
