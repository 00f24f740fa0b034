// The logistic function and what is made of it: SiLU, softplus, log-sigmoid, the tanh form of GELU,
// Mish. Each follows the mathematics into its tails: results keep their digits down to subnormal
// numbers.
#pragma once

#include "math/exp.h"
#include "math/log.h"
#include "math/scalar.h"
#include "math/table_lookup.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

namespace by_table {

// In the tails e = e^-|x| is small, and a few terms of a series in it are enough.
template <class V>
FASTACT_FN TableExp<V> tail_exp(V x) {
  return TableExp<V>(exp_steps(-min(V(kTableExpLimit), abs(x))), Tables<V>::kExp);
}

// e - e^2 + e^3 for x < 0, 1 - e + e^2 for x > 0.
struct SigmoidTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const TableExp<V> e = tail_exp(x);
    const V rough = e.rough();
    const V c = fnma(rough, rough, rough);
    return select(x < V(0), e.less(c), V(1) - c);
  }
};

template <class V>
FASTACT_FN V sigmoid(V x) {
  const V a = abs(x);
  const IntOf<V> cell = grid_point(a, Tables<V>::kWideCell).index;
  const V d = a - lookup<V>(Tables<V>::kSigmoid[0], cell);
  const V lower = cell_polynomial<1>(Tables<V>::kSigmoid, cell, d);  // sigmoid(-a)
  const V y = select(x < V(0), lower, V(1) - lower);
  return with_tail<SigmoidTail>(x, y, Tables<V>::kWideLimit);
}

// x sigmoid(x) = max(x, 0) - H(|x|).
// x sigmoid(x) = max(x, 0) - a / (1 + e^a), a = |x|.
struct SiluTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const V a = min(V(kTableExpLimit), abs(x));
    const TableExp<V> e = tail_exp(x);
    const V rough = e.rough();
    const V c = fnma(rough, rough, rough);
    // a times high + low, in two parts.
    const V high = a * e.high;
    const V low = fma(a, e.low, fma(a, e.high, -high));
    return max(V(-0.0f), x) - scale_down(high + fnma(high + low, c, low), e.n);
  }
};

template <class V>
FASTACT_FN V silu(V x) {
  const V a = abs(x);
  const IntOf<V> cell = grid_point(a, Tables<V>::kWideCell).index;
  const V d = a - lookup<V>(Tables<V>::kSilu[0], cell);
  const V p = cell_polynomial<2>(Tables<V>::kSilu, cell, d);
  // In the first cell H's linear term a/2 makes max(x, 0) an exact x/2, which spares the rounding
  // of 1/2 + ...
  const V constant = max(V(0), x) - lookup<V>(Tables<V>::kSilu[1], cell);
  const V y = fnma(d, p, select(a <= V(0.5f * Tables<V>::kWideCell), V(0.5f) * x, constant));
  return with_tail<SiluTail>(x, copysign(y, x), Tables<V>::kWideLimit);
}

// log(1 + e) = e - e^2/2 + e^3/3.
struct SoftplusTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const TableExp<V> e = tail_exp(x);
    const V rough = e.rough();
    const V c = rough * fnma(rough, V(1.0f / 3), V(0.5f));
    return select(x < V(0), e.less(c), x + rough);
  }
};

struct LogsigmoidTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const TableExp<V> e = tail_exp(x);
    const V rough = e.rough();
    const V c = rough * fnma(rough, V(1.0f / 3), V(0.5f));
    return select(x < V(0), x - rough, -e.less(c));
  }
};

template <class V>
FASTACT_FN V softplus(V x) {
  const V a = abs(x);
  const GridPoint<V> cell = grid_point(a, Tables<V>::kWideCell);
  const V d = a - cell.point;
  const V p = cell_polynomial<1>(Tables<V>::kSoftplus, cell.index, d);
  const V y = fma(d, p, max(V(0), x) + lookup<V>(Tables<V>::kSoftplus[0], cell.index));
  return with_tail<SoftplusTail>(x, y, Tables<V>::kWideLimit);
}

template <class V>
FASTACT_FN V logsigmoid(V x) {
  const IntOf<V> cell = grid_point(x, Tables<V>::kSignedCell).index;
  const V d = x - lookup<V>(Tables<V>::kLogsigmoid[0], cell);
  const V y = cell_polynomial<1>(Tables<V>::kLogsigmoid, cell, d);
  return with_tail<LogsigmoidTail>(x, y, Tables<V>::kSignedLimit);
}

// For x < 0: x e (1 - e/2); for x > 0: x - 2 x e^2.
struct MishTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const V a = min(V(kTableExpLimit), abs(x));
    const TableExp<V> e = tail_exp(x);
    const V rough = e.rough();
    const V f = a * (e.high + e.low);
    const V lower = scale_down(fnma(f, V(0.5f) * rough, f), e.n);
    return select(x < V(0), -lower, fnma(a + a, rough * rough, x));
  }
};

// The derivative of silu at -a, a > 0, is e (1 + e - a) / (1 + e)^2, and at a it is 1 less that.
struct SiluSlopeTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const V a = min(V(kTableExpLimit), abs(x));
    const TableExp<V> e = tail_exp(x);
    const V rough = e.rough();
    // (1 + e - a) (1 - 2 e + 3 e^2)
    const V factor = (V(1) - a) + rough;
    const V f = fnma(factor, rough * fnma(V(3), rough, V(2)), factor);
    const V below = f * (e.high + e.low);
    return select(x < V(0), scale_down(below, e.n), fnma(f, rough, V(1)));
  }
};

template <class V>
FASTACT_FN V silu_slope(V x) {
  const V a = abs(x);
  const IntOf<V> cell = grid_point(a, Tables<V>::kWideCell).index;
  const V d = a - lookup<V>(Tables<V>::kSiluSlope[0], cell);
  const V below = cell_polynomial<1>(Tables<V>::kSiluSlope, cell, d);
  const V y = select(x < V(0), below, V(1) - below);
  return with_tail<SiluSlopeTail>(x, y, Tables<V>::kWideLimit);
}

// For x < 0: e (1 + x) - e^2 (1/2 + x); for x > 0: 1 + (4 x - 2) e^2.
struct MishSlopeTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const V held = max(V(-kTableExpLimit), x);
    const TableExp<V> e = tail_exp(x);
    const V rough = e.rough();
    const V f = fnma(V(0.5f) + held, rough, V(1) + held);
    const V above = min(V(kTableExpLimit), x);
    const V rest = fma(V(4), above, V(-2)) * (rough * rough);
    return select(x < V(0), scale_down(f * (e.high + e.low), e.n), V(1) + rest);
  }
};

template <class V>
FASTACT_FN V mish_slope(V x) {
  const IntOf<V> cell = grid_point(x, Tables<V>::kSignedCell).index;
  const V d = x - lookup<V>(Tables<V>::kMishSlope[0], cell);
  const V y = cell_polynomial<1>(Tables<V>::kMishSlope, cell, d);
  return with_tail<MishSlopeTail>(x, y, Tables<V>::kSignedLimit);
}

template <class V>
FASTACT_FN V mish(V x) {
  const GridPoint<V> cell = grid_point(x, Tables<V>::kSignedCell);
  const V d = x - cell.point;
  const V p = cell_polynomial<1>(Tables<V>::kMish, cell.index, d);
  // In the cell of 0 the linear term x/2 is exact, and p adds little to it.
  const V constant = select(abs(x) <= V(0.5f * Tables<V>::kSignedCell), V(0.5f) * x,
                            lookup<V>(Tables<V>::kMish[0], cell.index));
  const V y = fma(d, p, constant);
  return with_tail<MishTail>(x, copysign(y, x), Tables<V>::kSignedLimit);
}

}  // namespace by_table

// f / (1 + e^-(z + rest)) with few roundings, |rest| < 2^-10; f is at most 2^20 in magnitude where
// z < -80.
template <class W>
FASTACT_FN W times_sigmoid(W f, W z, W rest = W(0)) {
  const W minus_a = -abs(z);
  return select(z < W(0), exp_product(f, minus_a, rest), f) / (W(1) + exp(minus_a));
}

// 1 / (1 + e^-x). Max error: 1 ULP (float), 2 ULP (double).
template <class V>
FASTACT_FN V sigmoid(V x) {
  if constexpr (kHasLookup<V>) {
    return by_table::sigmoid(x);
  } else {
    const auto w = widen<Short>(x);
    using W = decltype(widen<Short>(x));
    return narrow<V>(times_sigmoid(W(1), w));
  }
}

// x sigmoid(x). Max error: 1 ULP (float), 3 ULP (double).
template <class V>
FASTACT_FN V silu(V x) {
  if constexpr (kHasLookup<V>) {
    return by_table::silu(x);
  } else {
    using W = decltype(widen<Short>(x));
    const W w = max(W(-kExpLimit<W>), widen<Short>(x));
    return narrow<V>(times_sigmoid(w, w));
  }
}

// The derivative of silu: s (1 + x (1 - s)).
template <class V>
FASTACT_FN V silu_slope(V x) {
  if constexpr (kHasLookup<V>) {
    return by_table::silu_slope(x);
  } else {
    using W = decltype(widen<Full>(x));
    const W w = max(W(-kExpLimit<W>), min(W(kExpLimit<W>), widen<Full>(x)));
    const W e = exp(-abs(w));
    const W d = W(1) + e;
    // 1 - s for x < 0 and s for x > 0 are the larger of the two, 1/d; the other is e/d.
    const W larger = W(1) / d;
    const W negative = exp_product((d + w) * larger * larger, -abs(w));
    const W positive = (W(1) + w * (e * larger)) * larger;
    const W slope = select(w < W(0), negative, positive);
    if constexpr (kIsDouble<V> && !kIsScalar<V>)
      return near_root(tables::kSiluRoot, tables::kSiluAtRoot, w, slope);
    return narrow<V>(slope);
  }
}

// log(1 + e^x). Max error: 2 ULP.
template <class V>
FASTACT_FN V softplus(V x) {
  if constexpr (kHasLookup<V>) {
    return by_table::softplus(x);
  } else {
    using W = decltype(widen<Short>(x));
    const W w = widen<Short>(x);
    return narrow<V>(max(W(0), w) + log1p(exp(-abs(w))));
  }
}

// log(sigmoid(x)) = -softplus(-x). Max error: 1 ULP (float), 2 ULP (double).
template <class V>
FASTACT_FN V logsigmoid(V x) {
  if constexpr (kHasLookup<V>) {
    return by_table::logsigmoid(x);
  } else {
    using W = decltype(widen<Short>(x));
    const W w = widen<Short>(x);
    return narrow<V>(min(W(0), w) - log1p(exp(-abs(w))));
  }
}

// x tanh(softplus(x)). With n = e^x (e^x + 2), tanh(log(1 + e^x)) = n / (n + 2). Max error: 2 ULP
// (float), 4 ULP (double).
template <class V>
FASTACT_FN V mish(V x) {
  if constexpr (kHasLookup<V>) {
    return by_table::mish(x);
  } else {
    using W = decltype(widen<Short>(x));
    const W w = max(W(-kExpLimit<W>), widen<Short>(x));
    const W held = min(W(40), w);  // beyond, the quotient is 1
    const W e = exp(held);
    const W n = e * (e + W(2));
    const W usual = w * (n / (n + W(2)));
    const W tail = exp_product(w * ((e + W(2)) / (n + W(2))), held);
    return narrow<V>(select(w < W(-1), tail, usual));
  }
}

// The derivative of mish: with t = n / (n + 2), t + 4 x e (e + 1) / (n + 2)^2.
template <class V>
FASTACT_FN V mish_slope(V x) {
  if constexpr (kHasLookup<V>) {
    return by_table::mish_slope(x);
  } else {
    using W = decltype(widen<Full>(x));
    const W w = max(W(-kExpLimit<W>), min(W(40), widen<Full>(x)));
    const W e = exp(w);
    const W n = e * (e + W(2));
    const W over = W(1) / (n + W(2));
    const W slope = fma(W(4) * w, (e + W(1)) * over, e + W(2)) * over;
    const W result = select(w < W(-1), exp_product(slope, w), e * slope);
    if constexpr (kIsDouble<V> && !kIsScalar<V>)
      return near_root(tables::kMishRoot, tables::kMishAtRoot, w, result);
    return narrow<V>(result);
  }
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
