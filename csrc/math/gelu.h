// GELU, x Phi(x), with the normal distribution function Phi itself or its tanh approximation.
#pragma once

#include "math/exp.h"
#include "math/scalar.h"
#include "math/sigmoid.h"
#include "math/table_lookup.h"
#include "math/tables.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

constexpr double kGeluTanhLinear = 1.5957691216057308;  // 2 sqrt(2/pi)
constexpr double kGeluTanhCubic = 0.044715 * kGeluTanhLinear;

namespace by_table {

// Where a = |x| is large: with t = -a^2/2, e^t / sqrt(2 pi), and P(t) / Q(t) such that 1 less it is
// a Phi(-a) over that.
template <class V>
struct NormalTail {
  V a;
  TableExp<V> e;
  V numerator;
  V denominator;

  FASTACT_FN explicit NormalTail(V x)
      : a(min(V(14.8f), abs(x))), e(exp_steps_of_product(V(-0.5f) * a, a), Tables<V>::kGaussian) {
    const V t = V(-0.5f) * a * a;
    const auto& p = tables::kGeluTailNumerator;
    const auto& q = tables::kGeluTailDenominator;
    numerator = fma(fma(V(p[2]), t, V(p[1])), t, V(p[0]));
    denominator = fma(fma(t + V(q[2]), t, V(q[1])), t, V(q[0]));
  }
};

// a Phi(-a).
struct GeluTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const NormalTail<V> n(x);
    return max(V(-0.0f), x) - n.e.less(n.numerator / n.denominator);
  }
};

// x Phi(x) = max(x, 0) - a Phi(-a), a = |x|.
template <class V>
FASTACT_FN V gelu(V x) {
  const V a = abs(x);
  const GridPoint<V> cell = grid_point(a, Tables<V>::kNarrowCell);
  const V d = a - cell.point;
  const V p = cell_polynomial<1>(Tables<V>::kGelu, cell.index, d);
  const V y = fnma(d, p, max(V(0), x) - lookup<V>(Tables<V>::kGelu[0], cell.index));
  return with_tail<GeluTail>(x, y, Tables<V>::kNarrowLimit);
}

// e^-z with z = a (l + c a^2), 0 <= a <= 11.2.
template <class V>
FASTACT_FN TableExp<V> gelu_tanh_exp(V a) {
  // l + c a^2 in two parts. l's high part ends in zeros, so that subtracting it is exact.
  constexpr double kHigh = 1.595703125;
  constexpr float kCubic = static_cast<float>(kGeluTanhCubic);
  const V square = a * a;
  const V high = fma(V(kCubic), square, V(static_cast<float>(kHigh)));
  V low = fma(V(kCubic), square, V(static_cast<float>(kHigh)) - high);
  low = fma(V(kCubic), fma(a, a, -square), low);
  low = fma(V(static_cast<float>(kGeluTanhCubic - kCubic)), square, low);
  low = low + V(static_cast<float>(kGeluTanhLinear - kHigh));
  ExpSteps<V> s = exp_steps_of_product(-high, a);
  s.r = fnma(low, a, s.r);
  return TableExp<V>(s, Tables<V>::kExp);
}

// a e (1 - e) with e = e^-z.
struct GeluTanhTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const V a = min(V(11.2f), abs(x));
    const TableExp<V> e = gelu_tanh_exp(a);
    const V f = fnma(a, e.rough(), a);
    return max(V(-0.0f), x) - scale_down(fma(f, e.high, f * e.low), e.n);
  }
};

template <class V>
FASTACT_FN V gelu_tanh(V x) {
  const V a = abs(x);
  const GridPoint<V> cell = grid_point(a, Tables<V>::kNarrowCell);
  const V d = a - cell.point;
  const V p = cell_polynomial<1>(Tables<V>::kGeluTanh, cell.index, d);
  const V y = fnma(d, p, max(V(0), x) - lookup<V>(Tables<V>::kGeluTanh[0], cell.index));
  return with_tail<GeluTanhTail>(x, y, Tables<V>::kGeluTanhLimit);
}

// The derivative at -a, a > 0, is Phi(-a) - a phi(a), and at a it is 1 less that. With K as in
// GeluTail, Phi(-a) is e^t K / (sqrt(2 pi) a).
struct GeluSlopeTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const NormalTail<V> n(x);
    // (1 - P/Q) / a - a
    const V f = ((n.denominator - n.numerator) / (n.denominator * n.a)) - n.a;
    const TableExp<V>& e = n.e;
    return select(x < V(0), scale_down(f * (e.high + e.low), e.n), fnma(f, e.rough(), V(1)));
  }
};

template <class V>
FASTACT_FN IntOf<V> slope_cell(V a) {
  constexpr float kShift = Tables<V>::kSlopeShift;
  if constexpr (kShift != 0) a = a + V(kShift);
  return grid_point(a, Tables<V>::kNarrowCell).index;
}

template <class V>
FASTACT_FN V gelu_slope(V x) {
  const V a = abs(x);
  const IntOf<V> cell = slope_cell(a);
  const V d = a - lookup<V>(Tables<V>::kGeluSlope[0], cell);
  const V below = cell_polynomial<1>(Tables<V>::kGeluSlope, cell, d);
  const V y = select(x < V(0), below, V(1) - below);
  return with_tail<GeluSlopeTail>(x, y, Tables<V>::kNarrowLimit);
}

// e (1 + e - a z') (1 - 2 e) at -a with z' = l + 3 c a^2, and 1 less that at a.
struct GeluTanhSlopeTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const V a = min(V(11.2f), abs(x));
    const TableExp<V> e = gelu_tanh_exp(a);
    const V rough = e.rough();
    constexpr float kLinear = static_cast<float>(kGeluTanhLinear);
    constexpr float kCubic = static_cast<float>(3 * kGeluTanhCubic);
    const V factor = fnma(a, fma(V(kCubic), a * a, V(kLinear)), V(1) + rough);
    const V f = fnma(factor + factor, rough, factor);
    const V below = fma(f, e.high, f * e.low);
    return select(x < V(0), scale_down(below, e.n), fnma(f, rough, V(1)));
  }
};

template <class V>
FASTACT_FN V gelu_tanh_slope(V x) {
  const V a = abs(x);
  const IntOf<V> cell = slope_cell(a);
  const V d = a - lookup<V>(Tables<V>::kGeluTanhSlope[0], cell);
  const V below = cell_polynomial<1>(Tables<V>::kGeluTanhSlope, cell, d);
  const V y = select(x < V(0), below, V(1) - below);
  return with_tail<GeluTanhSlopeTail>(x, y, Tables<V>::kNarrowLimit);
}

}  // namespace by_table

// Phi(-a) e^(a^2/2), Mills' ratio but for a factor, in double lanes for 0 <= a <= 14.6 (Short) or
// 39 (Full): w = 1 / (a + k) times a polynomial in w (after Shepherd and Laframboise, 1981).
template <class W>
FASTACT_FN W mills(W a) {
  if constexpr (kIsShort<W>) {
    const W w = W(1) / (a + W(3));
    return w * polynomial(tables::kMillsShort, fnma(W(6), w, W(1)));
  } else {
    const W sum = a + W(5);
    const W lost = a - (sum - W(5));
    const W over = W(1) / sum;
    const W w = fnma(over * over, lost, over);
    return w * polynomial(tables::kMillsFull, fnma(W(10), w, W(1)));
  }
}

// f e^(-a^2/2) in double lanes. For a double, a^2 is split into an exact square and a small rest,
// since an error in the exponent becomes as large a relative error of the result.
template <class W>
FASTACT_FN W times_gaussian(W f, W a) {
  if constexpr (kIsShort<W>) {
    return f * exp(W(-0.5) * a * a);
  } else {
    const W high = from_bits<W>(to_bits(a) & IntOf<W>(~int64_t{0x7ffffff}));
    const W low = W(-0.5) * (a - high) * (a + high);
    return exp_product(f, W(-0.5) * high * high, low);
  }
}

// Beyond, Phi(-a) is 0.
template <class W>
constexpr double kNormalLimit = kIsShort<W> || !kIsDouble<W> ? 14.6 : 38.9;

// x Phi(x). Max error: 2 ULP (float), 4 ULP (double).
template <class V>
FASTACT_FN V gelu(V x) {
  if constexpr (kHasLookup<V>) {
    return by_table::gelu(x);
  } else {
    using W = decltype(widen<Short>(x));
    const W w = widen<Short>(x);
    if constexpr (kIsScalar<W>) {
      const W held = max(W(-kNormalLimit<W>), w);
      return held * library::normal_cdf(held);
    } else {
      // x Phi(x) = max(x, 0) - a Phi(-a) with a = |x|.
      const W a = min(W(kNormalLimit<W>), abs(w));
      const W y = max(W(0), w) - times_gaussian(a * mills(a), a);
      if constexpr (kIsDouble<V>) {
        const W small = w * fma(w, polynomial(tables::kNormalSmall, w * w), W(0.5));
        return select(a < W(1), small, y);
      }
      return narrow<V>(y);
    }
  }
}

// The derivative of gelu: Phi(x) + x phi(x), which is 1 - its value at -x.
template <class V>
FASTACT_FN V gelu_slope(V x) {
  if constexpr (kHasLookup<V>) {
    return by_table::gelu_slope(x);
  } else {
    using W = decltype(widen<Full>(x));
    const W w = max(W(-kNormalLimit<W>), min(W(kNormalLimit<W>), widen<Full>(x)));
    const W density(0.39894228040143268);  // 1 / sqrt(2 pi)
    if constexpr (kIsScalar<W>) {
      return library::normal_cdf(w) + w * density * library::exp(W(-0.5) * w * w);
    } else {
      const W a = abs(w);
      const W lower = times_gaussian(fnma(a, density, mills(a)), a);
      const W slope = select(w < W(0), lower, W(1) - lower);
      if constexpr (kIsDouble<V>) {
        const W square = w * w;
        const W rest =
            fma(density, exp(W(-0.5) * square), polynomial(tables::kNormalSmall, square));
        const W usual = select(a < W(1), fma(w, rest, W(0.5)), slope);
        return near_root(tables::kGeluRoot, tables::kGeluAtRoot, w, usual);
      }
      return narrow<V>(slope);
    }
  }
}

// z = x (l + c x^2), and what rounding lost of it. For a float in double lanes that counts nothing;
// elsewhere it does, since an error in e^z's exponent becomes as large a relative error.
template <class W>
struct GeluTanhArgument {
  W z;
  W rest;

  FASTACT_FN explicit GeluTanhArgument(W x) {
    using S = ScalarOf<W>;
    const W linear = broadcast<W>(kGeluTanhLinear);
    const W cubic = broadcast<W>(kGeluTanhCubic);
    const W square = x * x;
    if constexpr (kIsShort<W>) {
      z = x * fma(cubic, square, linear);
      rest = W(0);
    } else {
      const W term = cubic * square;
      const W factor = linear + term;
      W lost = sum_rest(linear, term, factor) + product_rest(cubic, square, term);
      lost = lost + cubic * product_rest(x, x, square);
      // What the constants lack as floats, or as doubles.
      lost = lost + broadcast<W>(kGeluTanhLinear - static_cast<S>(kGeluTanhLinear) + kLinearRest);
      lost = lost +
             broadcast<W>(kGeluTanhCubic - static_cast<S>(kGeluTanhCubic) + kCubicRest) * square;
      z = x * factor;
      rest = fma(x, lost, product_rest(x, factor, z));
    }
  }

  static constexpr double kLinearRest = -0x1.cbc0d30ebfd15p-54;
  static constexpr double kCubicRest = -0x1.6c843a29d1c70p-61;
};

// x sigmoid(z) with z = 2 sqrt(2/pi) (x + 0.044715 x^3), which is x (1 + tanh(z/2)) / 2. Max error:
// 2 ULP (float), 4 ULP (double).
template <class V>
FASTACT_FN V gelu_tanh(V x) {
  if constexpr (kHasLookup<V>) {
    return by_table::gelu_tanh(x);
  } else {
    using W = decltype(widen<Short>(x));
    const W w = widen<Short>(x);
    const W held = max(W(-kNormalLimit<W>), min(W(kNormalLimit<W>), w));
    const GeluTanhArgument<W> argument(held);
    return narrow<V>(times_sigmoid(max(held, w), argument.z, argument.rest));
  }
}

// The derivative of gelu_tanh: s + x z' s (1 - s) with s = sigmoid(z).
template <class V>
FASTACT_FN V gelu_tanh_slope(V x) {
  if constexpr (kHasLookup<V>) {
    return by_table::gelu_tanh_slope(x);
  } else {
    using W = decltype(widen<Full>(x));
    const W w = max(W(-kNormalLimit<W>), min(W(kNormalLimit<W>), widen<Full>(x)));
    const GeluTanhArgument<W> argument(w);
    const W z = argument.z;
    const W x_slope = w * fma(W(3 * kGeluTanhCubic), w * w, W(kGeluTanhLinear));
    const W e = exp(-abs(z));
    const W d = W(1) + e;
    const W over = W(1) / d;
    const W negative = exp_product((d + x_slope) * over * over, -abs(z), argument.rest);
    const W positive = (W(1) + x_slope * (e * over)) * over;
    const W slope = select(w < W(0), negative, positive);
    if constexpr (kIsDouble<V> && !kIsScalar<V>) {
      return near_root(tables::kGeluTanhRoot, tables::kGeluTanhAtRoot, w, slope);
    }
    return narrow<V>(slope);
  }
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
