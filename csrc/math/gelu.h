// GELU, x Phi(x), with the normal distribution function Phi itself or its tanh approximation.
#pragma once

#include "math/cells.h"
#include "math/exp.h"
#include "math/scalar.h"
#include "math/sigmoid.h"
#include "math/tables.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

constexpr double kGeluTanhLinear = 1.5957691216057308;  // 2 sqrt(2/pi)
constexpr double kGeluTanhCubic = 0.044715 * kGeluTanhLinear;

namespace lookup {

// Where the cells of width 1/8 end.
constexpr float kEighthCells = 3.9375f;

// a Phi(-a) = e^(-a^2/2) K(1/a^2).
struct GeluTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const V a = min(V(15), abs(x));
    const V half = V(-0.5f) * a;
    // As sixteenths(), but exact for a^2/2: n times a short ln(2) is exact, and one fma takes it off.
    const V shift(0x1.8p19f);
    const V shifted = fma(half * a, V(0x1.715476p+0f), shift);
    const V n = shifted - shift;
    V r = fma(half, a, n * V(-0x1.63p-1f));
    r = fma(n, V(0x1.bd0106p-13f), r);
    const TableExp<V> e = table_exp(Sixteenths<V>{n, hold(r, V(0x1p-5f)), to_bits(shifted)});
    const V u = V(1) / (a * a);
    V k(tables::kGeluTail[7]);
    FASTACT_UNROLL for (int i = 6; i >= 0; --i) k = fma(k, u, V(tables::kGeluTail[i]));
    return copysign(max(V(0), x) - times(k, e, V(0)), x);
  }
};

// x Phi(x) = max(x, 0) - a Phi(-a), a = |x|.
template <class V>
FASTACT_FN V gelu(V x) {
  const V a = abs(x);
  const GridPoint<V> cell = grid_point(a, 0.125f);
  const V d = a - cell.point;
  const V base = max(V(0), x) - lookup32<V>(tables::kGeluCells[0], cell.index);
  const V y = fnma(d, cell_polynomial<1>(tables::kGeluCells, cell.index, d), base);
  return with_tail<GeluTail>(x, y, kEighthCells);
}

// a e (1 - e) with e = e^-z, z = a (l + c a^2).
struct GeluTanhTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const V a = min(V(11), abs(x));
    // l + c a^2 in two parts. l's high part ends in zeros, so that subtracting it is exact.
    const double l_high = 1.595703125, l_low = kGeluTanhLinear - l_high;
    const float c_high = static_cast<float>(kGeluTanhCubic);
    const V square = a * a;
    const V high = fma(V(c_high), square, V(static_cast<float>(l_high)));
    V low = fma(V(c_high), square, V(static_cast<float>(l_high)) - high);
    low = fma(V(c_high), fma(a, a, -square), low);
    low = fma(V(static_cast<float>(kGeluTanhCubic - c_high)), square, low);
    low = low + V(static_cast<float>(l_low));
    const V shift(0x1.8p19f);
    const V shifted = fnma(high * a, V(0x1.715476p+0f), shift);
    const V n = shifted - shift;
    V r = fnma(high, a, n * V(-0x1.63p-1f));
    r = fnma(low, a, fma(n, V(0x1.bd0106p-13f), r));
    const TableExp<V> e = table_exp(Sixteenths<V>{n, hold(r, V(0x1p-5f)), to_bits(shifted)});
    return copysign(max(V(0), x) - times(a, e, rough(e)), x);
  }
};

template <class V>
FASTACT_FN V gelu_tanh(V x) {
  const V a = abs(x);
  const GridPoint<V> cell = grid_point(a, 0.125f);
  const V d = a - cell.point;
  const V base = max(V(0), x) - lookup32<V>(tables::kGeluTanhCells[0], cell.index);
  const V y = fnma(d, cell_polynomial<1>(tables::kGeluTanhCells, cell.index, d), base);
  return with_tail<GeluTanhTail>(x, y, kEighthCells);
}

}  // namespace lookup

// Phi(-a) e^(a^2/2), Mills' ratio but for a factor, in double lanes for 0 <= a <= 14.6 (Short) or
// 39 (Full): w = 1 / (a + k) times a polynomial in w (after Shepherd and Laframboise, 1981).
template <class W>
FASTACT_FN W mills(W a) {
  if constexpr (kIsShort<W>) {
    const W w = W(1) / (a + W(3));
    return w * polynomial(tables::kMillsShort, fnma(W(6), w, W(1)));
  } else {
    const W w = W(1) / (a + W(5));
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
    return lookup::gelu(x);
  } else {
    using W = decltype(widen<Short>(x));
    const W w = widen<Short>(x);
    if constexpr (kIsScalar<W>) {
      const W held = max(W(-kNormalLimit<W>), w);
      return held * library::normal_cdf(held);
    } else {
      // x Phi(x) = max(x, 0) - a Phi(-a) with a = |x|.
      const W a = min(W(kNormalLimit<W>), abs(w));
      return narrow<V>(max(W(0), w) - times_gaussian(a * mills(a), a));
    }
  }
}

// The derivative of gelu: Phi(x) + x phi(x), which is 1 - its value at -x.
template <class V>
FASTACT_FN V gelu_derivative(V x) {
  using W = decltype(widen<Full>(x));
  const W w = max(W(-kNormalLimit<W>), min(W(kNormalLimit<W>), widen<Full>(x)));
  const W density(0.39894228040143268);  // 1 / sqrt(2 pi)
  if constexpr (kIsScalar<W>) {
    return library::normal_cdf(w) + w * density * library::exp(W(-0.5) * w * w);
  } else {
    const W a = abs(w);
    const W lower = times_gaussian(fnma(a, density, mills(a)), a);
    return narrow<V>(select(w < W(0), lower, W(1) - lower));
  }
}

// x sigmoid(z) with z = 2 sqrt(2/pi) (x + 0.044715 x^3), which is x (1 + tanh(z/2)) / 2. Max error:
// 2 ULP (float).
template <class V>
FASTACT_FN V gelu_tanh(V x) {
  if constexpr (kHasLookup<V>) {
    return lookup::gelu_tanh(x);
  } else {
    using W = decltype(widen<Short>(x));
    const W w = max(W(-kNormalLimit<W>), widen<Short>(x));
    const W z = w * fma(W(kGeluTanhCubic), w * w, W(kGeluTanhLinear));
    return narrow<V>(times_sigmoid(w, z));
  }
}

// The derivative of gelu_tanh: s + x z' s (1 - s) with s = sigmoid(z).
template <class V>
FASTACT_FN V gelu_tanh_derivative(V x) {
  using W = decltype(widen<Full>(x));
  const W w = max(W(-kNormalLimit<W>), min(W(kNormalLimit<W>), widen<Full>(x)));
  const W square = w * w;
  const W z = w * fma(W(kGeluTanhCubic), square, W(kGeluTanhLinear));
  const W x_slope = w * fma(W(3 * kGeluTanhCubic), square, W(kGeluTanhLinear));
  const W e = exp(-abs(z));
  const W d = W(1) + e;
  const W over = W(1) / d;
  const W negative = exp_product((d + x_slope) * over * over, -abs(z));
  const W positive = (W(1) + x_slope * (e * over)) * over;
  return narrow<V>(select(w < W(0), negative, positive));
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
