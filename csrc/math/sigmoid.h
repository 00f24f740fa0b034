// The logistic function and what is made of it: SiLU, softplus, log-sigmoid, the tanh form of GELU,
// Mish. Each follows the mathematics into its tails: results keep their digits down to subnormal
// numbers.
#pragma once

#include "math/exp.h"
#include "math/log.h"
#include "math/scalar.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// f / (1 + e^-z) with few roundings; f is at most 2^20 in magnitude where z < -80.
template <class W>
FASTACT_FN W times_sigmoid(W f, W z) {
  const W minus_a = -abs(z);
  return select(z < W(0), exp_product(f, minus_a), f) / (W(1) + exp(minus_a));
}

// 1 / (1 + e^-x). Max error: 1 ULP (float), 2 ULP (double).
template <class V>
FASTACT_FN V sigmoid(V x) {
  const auto w = widen<Short>(x);
  using W = decltype(widen<Short>(x));
  return narrow<V>(times_sigmoid(W(1), w));
}

// x sigmoid(x). Max error: 1 ULP (float), 3 ULP (double).
template <class V>
FASTACT_FN V silu(V x) {
  using W = decltype(widen<Short>(x));
  const W w = max(W(-kExpLimit<W>), widen<Short>(x));
  return narrow<V>(times_sigmoid(w, w));
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
  using W = decltype(widen<Short>(x));
  const W w = widen<Short>(x);
  return narrow<V>(max(W(0), w) + log1p(exp(-abs(w))));
}

// log(sigmoid(x)) = -softplus(-x). Max error: 1 ULP (float), 2 ULP (double).
template <class V>
FASTACT_FN V logsigmoid(V x) {
  using W = decltype(widen<Short>(x));
  const W w = widen<Short>(x);
  return narrow<V>(min(W(0), w) - log1p(exp(-abs(w))));
}

// x tanh(softplus(x)). With n = e^x (e^x + 2), tanh(log(1 + e^x)) = n / (n + 2). Max error: 2 ULP
// (float), 4 ULP (double).
template <class V>
FASTACT_FN V mish(V x) {
  using W = decltype(widen<Short>(x));
  const W w = max(W(-kExpLimit<W>), widen<Short>(x));
  const W held = min(W(40), w);  // beyond, the quotient is 1
  const W e = exp(held);
  const W n = e * (e + W(2));
  const W usual = w * (n / (n + W(2)));
  const W tail = exp_product(w * ((e + W(2)) / (n + W(2))), held);
  return narrow<V>(select(w < W(-1), tail, usual));
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
