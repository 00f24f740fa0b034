// log1p for arguments that are not negative.
#pragma once

#include "math/exp.h"
#include "math/scalar.h"
#include "math/tables.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// log(1 + u), 0 <= u <= infinity. Max error: 1 ULP (float), 2 ULP (double).
template <class V>
FASTACT_FN V log1p(V u) {
  if constexpr (kIsScalar<V>) {
    return library::log1p(u);
  } else if constexpr (!kIsDouble<V>) {
    return narrow<V>(log1p(widen<Short>(u)));
  } else {
    // 1 + u = 2^k m with m in [sqrt(1/2), sqrt(2)); `lost` is what rounding 1 + u
    // dropped.
    const V y = V(1) + u;
    const V lost = select(u < V(1), u - (y - V(1)), V(1) - (y - u));
    const IntOf<V> root_half(0x3fe6a09e667f3bcd);
    const IntOf<V> above = to_bits(y) - root_half;
    const V m = from_bits<V>((above & IntOf<V>(0x000fffffffffffff)) + root_half);
    const V k = from_bits<V>(shift_right<52>(above) | IntOf<V>(0x4330000000000000)) - V(0x1p52);
    // log(m) = f - (f^2/2 - s (f^2/2 + R)),  f = m - 1,  s = f / (2 + f),  R = 2 atanh(s)/s - 2.
    const V f = m - V(1);
    const V s = f / (V(2) + f);
    const V z = s * s;
    const V half_square = V(0.5) * f * f;
    V result;
    if constexpr (kIsShort<V>) {
      const V r = z * polynomial(tables::kLogShort, z);
      const V log_m = f - fnma(s, half_square + r, half_square);
      // Above 1, `lost` is not small beside 1, but beside u, which it is added to as if that
      // were 1.
      result = fma(k, V(0x1.62e42fefa39efp-1), log_m + select(u < V(1), lost, V(0)));
    } else {
      const V r = z * polynomial(tables::kLogFull, z);
      const V low = fma(k, V(0x1.a39ef35793c76p-33), lost / y);
      result = fma(k, V(0x1.62e42feep-1), f - (half_square - fma(s, half_square + r, low)));
    }
    return select(u < V(INFINITY), result, u);
  }
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
