// ELU, CELU and SELU.
#pragma once

#include "math/exp.h"
#include "math/scalar.h"
#include "math/table_lookup.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// The constants of SELU (Klambauer et al., 2017).
constexpr double kSeluAlpha = 1.6732632423543772848170429916717;
constexpr double kSeluScale = 1.0507009873554804934193349852946;

namespace by_table {

// kSeluScale x, rounded once. Both parts of the constant are positive, so that infinity stays.
template <class V>
FASTACT_FN V selu_linear(V x) {
  constexpr float kHigh = 0x1.0cfabcp+0f;
  constexpr float kLow = static_cast<float>(kSeluScale - kHigh);
  static_assert(kLow > 0, "");
  return fma(x, V(kHigh), x * V(kLow));
}

struct SeluTail {
  template <class V>
  static FASTACT_FN V apply(V x) {
    constexpr float kBelow = static_cast<float>(kSeluScale * kSeluAlpha);
    const TableExp<V> e(exp_steps(-min(V(kTableExpLimit), abs(x))), Tables<V>::kExp);
    return select(x < V(0), fma(V(kBelow), e.rough(), V(-kBelow)), selu_linear(x));
  }
};

template <class V>
FASTACT_FN V selu(V x) {
  const V a = abs(x);
  const IntOf<V> cell = grid_point(a, Tables<V>::kWideCell).index;
  const V d = a - lookup<V>(Tables<V>::kSelu[0], cell);
  // The first cell's slope is no float: its high part comes last, and is rounded with the result.
  const V slope = select(a <= V(0.5f * Tables<V>::kWideCell), V(Tables<V>::kSeluSlope), V(0));
  const V below = fma(d, slope, cell_polynomial<1>(Tables<V>::kSelu, cell, d));
  const V y = select(x < V(0), -below, selu_linear(x));
  return with_tail<SeluTail>(x, y, Tables<V>::kWideLimit);
}

}  // namespace by_table

// positive * x for x >= 0, else negative * (e^(steepness * x) - 1). Max error: 1 ULP (float), 3 ULP
// (double); backward 2 ULP from the output.
template <class V>
struct ExponentialUnit {
  // The type that forward() computes in: SELU's constants are no floats.
  using W = decltype(widen<Short>(V()));
  W positive;
  W negative;
  W steepness;
  V positive_slope;
  V negative_high;  // `negative` in two parts
  V negative_low;
  V steepness_slope;
  bool is_unit;      // all three are 1
  bool from_output;  // what backward() gets (see saves_output)

  FASTACT_FN ExponentialUnit(double positive, double negative, double steepness)
      : positive(broadcast<W>(positive)),
        negative(broadcast<W>(negative)),
        steepness(broadcast<W>(steepness)),
        positive_slope(broadcast<V>(positive)),
        negative_high(broadcast<V>(negative)),
        negative_low(
            broadcast<V>(negative - static_cast<double>(static_cast<ScalarOf<V>>(negative)))),
        steepness_slope(broadcast<V>(steepness)),
        is_unit(positive == 1 && negative == 1 && steepness == 1),
        from_output(negative >= 0) {}

  FASTACT_FN V forward(V x) const {
    if (is_unit) return select(x >= V(0), x, expm1_of_negative(x));
    const W w = widen<Short>(x);
    return narrow<V>(select(w >= W(0), w * positive, negative * expm1_of_negative(w * steepness)));
  }

  FASTACT_FN V backward(V grad, V saved) const {
    V slope;
    if (from_output) {
      // Below 0 the derivative is steepness * negative * e^(steepness * x), which is
      // steepness * (y + negative): nearly a difference, to which the factor's low part counts.
      slope = steepness_slope * ((saved + negative_high) + negative_low);
    } else {
      const W w = widen<Short>(saved);
      slope = narrow<V>(steepness * negative * exp(w * steepness));
    }
    return grad * select(saved <= V(0), slope, positive_slope);
  }
};

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
