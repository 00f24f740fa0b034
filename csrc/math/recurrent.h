// One step of a recurrent layer for one vector of hidden units, and its gradient. A sum is the
// value before an activation.
#pragma once

#include "math/sigmoid.h"
#include "math/tanh.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// ---- gates --------------------------------------------------------------------------------------

// Whether V takes sigmoid and tanh by one power and one division: on AVX2 an LSTM's cell then took
// some 165 to 175 cycles for 16 units of a row where it took 205, a fifth of its product at H = 256
// (Zen 3, a busy machine). AVX-512 looks up 32 entries.
template <class V>
constexpr bool kGatesByPower = !kIsScalar<V> && !kIsDouble<V> && Traits<V>::lookup_entries < 32;

// e^x = power (1 + tail), power = 2^n, |x| <= 87.
template <class V>
struct GatePower {
  V power;
  V tail;

  FASTACT_FN explicit GatePower(V x) {
    const V shift(0x1.8p23f);
    const V shifted = fma(x, V(0x1.715476p+0f), shift);
    const V n = shifted - shift;
    // The first part of ln(2) is so short that n times it is exact.
    const V r = fnma(n, V(-0x1.bd0106p-13f), fnma(n, V(0x1.63p-1f), x));
    tail = fma(r * r, polynomial(tables::kExpShort, r), r);
    power = from_bits<V>(to_bits(V(1)) + shift_left<23>(to_bits(shifted)));
  }
};

// Max error: 2.5 ULP, or that of sigmoid(); below -87 not less than 10^-38.
template <class V>
FASTACT_FN V gate_sigmoid(V x) {
  if constexpr (kGatesByPower<V>) {
    const GatePower<V> e(-max(V(-87), min(V(87), x)));
    return V(1) / (V(1) + fma(e.power, e.tail, e.power));
  } else {
    return sigmoid(x);
  }
}

// Max error: 2.5 ULP, or that of tanh().
template <class V>
FASTACT_FN V gate_tanh(V x) {
  if constexpr (kGatesByPower<V>) {
    // (e^2a - 1) / (e^2a + 1) for a = |x|, from 9.02 on 1.
    const V a = min(V(9.02f), abs(x));
    const GatePower<V> e(a + a);
    const V less = fma(e.power, e.tail, e.power - V(1));
    return copysign(less / (less + V(2)), x);
  } else {
    return tanh(x);
  }
}

// y (1 - y) and 1 - y^2: the derivatives of sigmoid and tanh by their values.
template <class V>
FASTACT_FN V sigmoid_slope(V y) {
  return y * (V(1) - y);
}
template <class V>
FASTACT_FN V tanh_slope(V y) {
  return fnma(y, y, V(1));
}

// LSTM: c = f c_before + i g, h = o tanh(c).
template <class V>
struct LstmGates {
  V i, f, g, o;

  static FASTACT_FN LstmGates activated(V i, V f, V g, V o) {
    return {gate_sigmoid(i), gate_sigmoid(f), gate_tanh(g), gate_sigmoid(o)};
  }
  FASTACT_FN V cell(V c_before) const { return fma(f, c_before, i * g); }
  FASTACT_FN V hidden(V c) const { return o * gate_tanh(c); }

  // The gradients of the four sums. dc is that of c by later steps, and becomes that of c_before.
  FASTACT_FN LstmGates backward(V c_before, V c, V dh, V* dc) const {
    const V t = gate_tanh(c);
    const V own = fma(dh * o, tanh_slope(t), *dc);
    *dc = own * f;
    return {own * g * sigmoid_slope(i), own * c_before * sigmoid_slope(f), own * i * tanh_slope(g),
            dh * t * sigmoid_slope(o)};
  }
};

// GRU: n = tanh(n_x + r n_h), h = n + z (h_before - n), where n_h = W_hn h_before + b_hn.
template <class V>
struct GruGates {
  V r, z, n;

  static FASTACT_FN GruGates activated(V r, V z, V n_x, V n_h) {
    const V reset = gate_sigmoid(r);
    return {reset, gate_sigmoid(z), gate_tanh(fma(reset, n_h, n_x))};
  }
  FASTACT_FN V hidden(V h_before) const { return fma(z, h_before - n, n); }

  // The gradients of the sums, of n_x (n) and of n_h. dh is that of h, and becomes what h_before
  // gets but through the sums.
  struct Gradients {
    V r, z, n_x, n_h;
  };
  FASTACT_FN Gradients backward(V h_before, V n_h, V* dh) const {
    const V dn = *dh * (V(1) - z) * tanh_slope(n);
    const V dz = *dh * (h_before - n) * sigmoid_slope(z);
    *dh = *dh * z;
    return {dn * n_h * sigmoid_slope(r), dz, dn, dn * r};
  }
};

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
