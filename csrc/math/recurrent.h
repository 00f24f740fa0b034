// One step of a recurrent layer for one vector of hidden units, and its gradient. A sum is the
// value before an activation.
#pragma once

#include "math/sigmoid.h"
#include "math/tanh.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

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
    return {sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)};
  }
  FASTACT_FN V cell(V c_before) const { return fma(f, c_before, i * g); }
  FASTACT_FN V hidden(V c) const { return o * tanh(c); }

  // The gradients of the four sums. dc is that of c by later steps, and becomes that of c_before.
  FASTACT_FN LstmGates backward(V c_before, V c, V dh, V* dc) const {
    const V t = tanh(c);
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
    const V reset = sigmoid(r);
    return {reset, sigmoid(z), tanh(fma(reset, n_h, n_x))};
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
