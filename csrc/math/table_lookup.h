// Functions of float by table look-up, for widths that have a fast one: an interval is cut into
// cells, and in each the function is a polynomial in the distance from a point of the cell. A
// coefficient is looked up in one register or two by one instruction or three, so that there are 32
// cells with AVX-512, and 8 (of twice the degree) with AVX2.
//
// Where the bound is 1 ULP that point is chosen so that the function's value there is nearly a
// float (Gal, 1986): the one rounding that counts is then the last. Where it is 2 ULP, the points
// are the multiples of the cell's width.
#pragma once

#include <type_traits>

#include "math/scalar.h"
#include "math/tables.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

template <class V>
using Tables =
    std::conditional_t<Traits<V>::lookup_entries == 32, tables::Tables32, tables::Tables8>;

// The multiple of a power of two that is nearest to a, and the number of that multiple in the
// low bits.
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
template <int kFirst, class V, int kRows, int kEntries>
FASTACT_FN V cell_polynomial(const float (&c)[kRows][kEntries], IntOf<V> index, V d) {
  V sum = lookup<V>(c[kRows - 1], index);
  FASTACT_UNROLL for (int k = kRows - 2; k >= kFirst; --k) {
    sum = fma(sum, d, lookup<V>(c[k], index));
  }
  return sum;
}

// y, but Tail::apply(x) wherever |x| >= limit; NaN stays with y. (At the limit itself, grid_point()
// may round up to the cell after the last.) The tail runs for the whole group as soon as one lane
// needs it, and for two registers at a time: all at once would not fit, and one at a time, their
// long chains would wait for themselves. Out of line it would cost 3 cycles more per 16 elements,
// in memory traffic (AMD Zen 5).
template <class Tail, class V>
FASTACT_FN V with_tail(V x, V y, float limit) {
  if (FASTACT_UNLIKELY(any_greater(to_bits(abs(x)), to_bits(limit) - 1))) {
    return map_pairs(x, y, [limit](auto pair, auto inside) FASTACT_LAMBDA {
      return select(abs(pair) >= decltype(pair)(limit), Tail::apply(pair), inside);
    });
  }
  return y;
}

// Beyond, e^x rounds to 0 or infinity.
constexpr float kTableExpLimit = 110;

// x = n ln(2) + r, n the nearest multiple of 1/E for E = Tables::kExpEntries; 2^(n - floor(n)) is
// the entry `index` of Tables::kExp. |x| <= kTableExpLimit.
template <class V>
struct ExpSteps {
  V n;
  V r;
  IntOf<V> index;
};

// Added to it, a number is rounded to such multiples, and the low bits count them.
template <class V>
constexpr float kExpShift = 0x1.8p23f / Tables<V>::kExpEntries;

template <class V>
FASTACT_FN ExpSteps<V> exp_steps(V x) {
  const V shifted = fma(x, V(0x1.715476p+0f), V(kExpShift<V>));
  const V n = shifted - V(kExpShift<V>);
  const V r = fnma(n, V(-0x1.05c61p-29f), fnma(n, V(0x1.62e43p-1f), x));
  return {n, r, to_bits(shifted)};
}

// Likewise of f g. n times a short ln(2) is exact and one fma takes it off f g, which
// is rounded only then.
template <class V>
FASTACT_FN ExpSteps<V> exp_steps_of_product(V f, V g) {
  const V shifted = fma(f * g, V(0x1.715476p+0f), V(kExpShift<V>));
  const V n = shifted - V(kExpShift<V>);
  const V r = fma(f, g, n * V(-0x1.63p-1f));
  return {n, fma(n, V(0x1.bd0106p-13f), r), to_bits(shifted)};
}

template <class V, int kTerms>
FASTACT_FN V polynomial(const float (&c)[kTerms], V x) {
  V sum(c[kTerms - 1]);
  FASTACT_UNROLL for (int i = kTerms - 2; i >= 0; --i) sum = fma(sum, x, V(c[i]));
  return sum;
}

// e^x = (high + low) 2^n, n rounded down as scale_down() does; high + low has some 30 bits. The
// table is kExp, or kGaussian, which has a factor in it.
template <class V>
struct TableExp {
  V high;
  V low;
  V n;

  template <int kEntries>
  FASTACT_FN TableExp(ExpSteps<V> s, const float (&table)[2][kEntries]) : n(s.n) {
    const V q = fma(polynomial(Tables<V>::kExpPolynomial, s.r), s.r, V(1));
    high = lookup<V>(table[0], s.index);
    low = fma(high * s.r, q, lookup<V>(table[1], s.index));
  }

  // e^x where it is above 2^-60, else some small number: enough where e^x corrects, and neither it
  // nor its square is ever subnormal, which would cost some 30 cycles in what is computed from it
  // (AMD Zen 5).
  FASTACT_FN V rough() const { return scale_down(high + low, max(V(-60), n)); }

  // e^x (1 - c), c small, rounded once.
  FASTACT_FN V less(V c) const { return scale_down(high + fnma(high + low, c, low), n); }
};

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
