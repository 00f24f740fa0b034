// x / (1 + |x|).
#pragma once

#include "math/scalar.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// Max error: 1 ULP (vectors), 1.5 ULP (scalars, and double lanes without a fused multiply-add).
template <class V>
FASTACT_FN V softsign(V x) {
  if constexpr (kHasFma<V>) {
    // Held there, infinity gives the limit 1, to which the quotient rounds long before.
    const V a = min(V(0x1p60f), abs(x));
    const V large = max(V(1), a);
    const V small = min(V(1), a);
    const V d = large + small;
    const V lost = small - (d - large);
    // One step of Newton's method for a / (d + lost).
    const V over = V(1) / d;
    const V q = a * over;
    const V rest = fnma(q, lost, fnma(q, d, a));
    return copysign(fma(rest, over, q), x);
  } else {
    using W = decltype(widen<Short>(x));
    const W w = widen<Short>(x);
    const W a = min(W(0x1p60f), abs(w));
    return narrow<V>(copysign(a / (W(1) + a), w));
  }
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
