// The logistic function and what is made of it: SiLU, softplus, log-sigmoid, the tanh form of GELU,
// Mish. Each follows the mathematics into its tails: results keep their digits down to subnormal
// numbers.
#pragma once

#include "math/cells.h"
#include "math/exp.h"
#include "math/log.h"
#include "math/scalar.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

namespace lookup {

// Where the cells of width 1/4 and of 1/2 (around 0) end.
constexpr float kQuarterCells = 7.875f;
constexpr float kHalfCells = 7.75f;

struct SigmoidTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const TableExp<V> e = table_exp(sixteenths(-abs(x)));
    const V power = rough(e);
    const V rest = fnma(power, power, power);  // e (1 - e), 1 - sigmoid but for e^3
    const V lower = scale(e.high + fnma(e.high + e.low, rest, e.low), e.n);
    return select(x < V(0), lower, V(1) - rest);
  }
};

template <class V>
FASTACT_FN V sigmoid(V x) {
  const V a = abs(x);
  const IntOf<V> cell = grid_point(a, 0.25f).index;
  const V d = a - lookup32<V>(tables::kSigmoidCells[0], cell);
  const V lower = cell_polynomial<1>(tables::kSigmoidCells, cell, d);  // sigmoid(-a)
  const V y = select(x < V(0), lower, V(1) - lower);
  return with_tail<SigmoidTail>(x, y, kQuarterCells);
}

// x sigmoid(x) = max(x, 0) - H(|x|).
struct SiluTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const V a = min(V(120), abs(x));
    const TableExp<V> e = table_exp(sixteenths(-a));
    const V power = rough(e);
    return copysign(max(V(0), x) - times(a, e, fnma(power, power, power)), x);
  }
};

template <class V>
FASTACT_FN V silu(V x) {
  const V a = abs(x);
  const IntOf<V> cell = grid_point(a, 0.25f).index;
  const V d = a - lookup32<V>(tables::kSiluCells[0], cell);
  // In the first cell H's linear term a/2 makes max(x, 0) an exact x/2, which spares the rounding
  // of 1/2 + ...
  const V constant = max(V(0), x) - lookup32<V>(tables::kSiluCells[1], cell);
  const V base = select(a <= V(0.125f), V(0.5f) * x, constant);
  const V y = fnma(d, cell_polynomial<2>(tables::kSiluCells, cell, d), base);
  return with_tail<SiluTail>(x, y, kQuarterCells);
}

// log(1 + e^-a) = e - e^2/2 + e^3/3 where e = e^-a is small.
template <class V>
struct SoftplusRest {
  V whole;  // with its subnormal values
  V rough;  // e itself, never subnormal

  FASTACT_FN explicit SoftplusRest(V a) {
    const TableExp<V> e = table_exp(sixteenths(-a));
    rough = fastact::rough(e);
    const V c = rough * fnma(rough, V(1.0f / 3), V(0.5f));
    whole = scale(e.high + fnma(e.high + e.low, c, e.low), e.n);
  }
};

struct SoftplusTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const SoftplusRest<V> rest(abs(x));
    return select(x < V(0), rest.whole, x + rest.rough);
  }
};

struct LogsigmoidTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const SoftplusRest<V> rest(abs(x));
    return select(x < V(0), x - rest.rough, -rest.whole);
  }
};

template <class V>
FASTACT_FN V softplus(V x) {
  const V a = abs(x);
  const GridPoint<V> cell = grid_point(a, 0.25f);
  const V d = a - cell.point;
  const V base = max(V(0), x) + lookup32<V>(tables::kSoftplusCells[0], cell.index);
  const V y = fma(d, cell_polynomial<1>(tables::kSoftplusCells, cell.index, d), base);
  return with_tail<SoftplusTail>(x, y, kQuarterCells);
}

template <class V>
FASTACT_FN V logsigmoid(V x) {
  const IntOf<V> cell = grid_point(x, 0.5f).index;
  const V d = x - lookup32<V>(tables::kLogsigmoidCells[0], cell);
  const V y = cell_polynomial<1>(tables::kLogsigmoidCells, cell, d);
  return with_tail<LogsigmoidTail>(x, y, kHalfCells);
}

// For x < 0: x e (1 - e/2) with e = e^x; for x > 0: x - 2 x e^2 with e = e^-x.
struct MishTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    const V a = min(V(120), abs(x));
    const TableExp<V> e = table_exp(sixteenths(-a));
    const V power = rough(e);
    const V lower = -times(a, e, V(0.5f) * power);
    return select(x < V(0), lower, x - (a + a) * (power * power));
  }
};

template <class V>
FASTACT_FN V mish(V x) {
  const GridPoint<V> cell = grid_point(x, 0.5f);
  const V y = cell_polynomial<0>(tables::kMishCells, cell.index, x - cell.point);
  return with_tail<MishTail>(x, y, kHalfCells);
}

}  // namespace lookup

// f / (1 + e^-z) with few roundings; f is at most 2^20 in magnitude where z < -80.
template <class W>
FASTACT_FN W times_sigmoid(W f, W z) {
  const W minus_a = -abs(z);
  return select(z < W(0), exp_product(f, minus_a), f) / (W(1) + exp(minus_a));
}

// 1 / (1 + e^-x). Max error: 1 ULP (float), 2 ULP (double).
template <class V>
FASTACT_FN V sigmoid(V x) {
  if constexpr (kHasLookup<V>) {
    return lookup::sigmoid(x);
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
    return lookup::silu(x);
  } else {
    using W = decltype(widen<Short>(x));
    const W w = max(W(-kExpLimit<W>), widen<Short>(x));
    return narrow<V>(times_sigmoid(w, w));
  }
}

// The derivative of silu: s (1 + x (1 - s)).
template <class V>
FASTACT_FN V silu_derivative(V x) {
  using W = decltype(widen<Full>(x));
  const W w = max(W(-kExpLimit<W>), min(W(kExpLimit<W>), widen<Full>(x)));
  const W e = exp(-abs(w));
  const W d = W(1) + e;
  // 1 - s for x < 0 and s for x > 0 are the larger of the two, 1/d; the other is e/d.
  const W larger = W(1) / d;
  const W negative = exp_product((d + w) * larger * larger, -abs(w));
  const W positive = (W(1) + w * (e * larger)) * larger;
  return narrow<V>(select(w < W(0), negative, positive));
}

// log(1 + e^x). Max error: 2 ULP.
template <class V>
FASTACT_FN V softplus(V x) {
  if constexpr (kHasLookup<V>) {
    return lookup::softplus(x);
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
    return lookup::logsigmoid(x);
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
    return lookup::mish(x);
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
FASTACT_FN V mish_derivative(V x) {
  using W = decltype(widen<Full>(x));
  const W w = max(W(-kExpLimit<W>), min(W(40), widen<Full>(x)));
  const W e = exp(w);
  const W n = e * (e + W(2));
  const W over = W(1) / (n + W(2));
  const W slope = fma(W(4) * w, (e + W(1)) * over, e + W(2)) * over;
  return narrow<V>(select(w < W(-1), exp_product(slope, w), e * slope));
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
