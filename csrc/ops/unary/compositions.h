// The ATen composition of each activation, one row each: what runs wherever fastact has no kernel
// (another device, dtype or layout, forward-mode and higher-order derivatives), and so
// differentiable to any order. `backward` reads what the activation saves: its output or its input.
#pragma once

#include <ATen/Functions.h>
#include <ATen/ScalarOps.h>

#include "core/activation.h"
#include "core/checks.h"
#include "math/activations.h"

namespace fastact {
namespace {

template <class A>
struct Composition;

// What most of them have.
struct Defaults {
  static void check(const double*) {}  // every parameter is in range
  static constexpr bool keeps_strides = true;
};

template <>
struct Composition<Relu> : Defaults {
  static Tensor forward(const Tensor& x, const double*) { return at::relu(x); }
  static Tensor backward(const Tensor& g, const Tensor& y, const double*) {
    return at::threshold_backward(g, y, 0);
  }
};

template <>
struct Composition<Relu6> : Defaults {
  static Tensor forward(const Tensor& x, const double*) { return at::relu6(x); }
  static Tensor backward(const Tensor& g, const Tensor& y, const double*) {
    return at::hardtanh_backward(g, y, 0, 6);
  }
};

template <>
struct Composition<LeakyRelu> : Defaults {
  static Tensor forward(const Tensor& x, const double* p) { return at::leaky_relu(x, p[0]); }
  static Tensor backward(const Tensor& g, const Tensor& saved, const double* p) {
    return at::leaky_relu_backward(g, saved, p[0], LeakyRelu::saves_output(p));
  }
};

template <>
struct Composition<Elu> : Defaults {
  static Tensor forward(const Tensor& x, const double* p) { return at::elu(x, p[0]); }
  static Tensor backward(const Tensor& g, const Tensor& saved, const double* p) {
    return at::elu_backward(g, p[0], 1, 1, Elu::saves_output(p), saved);
  }
};

template <>
struct Composition<Selu> : Defaults {
  static Tensor forward(const Tensor& x, const double*) { return at::selu(x); }
  static Tensor backward(const Tensor& g, const Tensor& y, const double*) {
    return at::elu_backward(g, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946,
                            1, /*is_result=*/true, y);
  }
};

template <>
struct Composition<Celu> : Defaults {
  static void check(const double* p) {
    TORCH_CHECK(p[0] != 0, "fastact.celu(): alpha: expected a number other than 0, got ", p[0]);
  }
  static Tensor forward(const Tensor& x, const double* p) { return at::celu(x, p[0]); }
  static Tensor backward(const Tensor& g, const Tensor& saved, const double* p) {
    return at::elu_backward(g, p[0], 1, 1 / p[0], Celu::saves_output(p), saved);
  }
};

template <>
struct Composition<Gelu> : Defaults {
  static Tensor forward(const Tensor& x, const double*) { return at::gelu(x); }
  static Tensor backward(const Tensor& g, const Tensor& x, const double*) {
    return at::gelu_backward(g, x);
  }
};

template <>
struct Composition<GeluTanh> : Defaults {
  static Tensor forward(const Tensor& x, const double*) { return at::gelu(x, "tanh"); }
  static Tensor backward(const Tensor& g, const Tensor& x, const double*) {
    return at::gelu_backward(g, x, "tanh");
  }
};

template <>
struct Composition<Silu> : Defaults {
  static Tensor forward(const Tensor& x, const double*) { return at::silu(x); }
  static Tensor backward(const Tensor& g, const Tensor& x, const double*) {
    // Not at::silu_backward, which cannot be differentiated twice nor in forward mode.
    const Tensor s = at::sigmoid(x);
    return at::mul(g, at::mul(s, at::add(at::mul(x, at::rsub(s, 1)), 1)));
  }
};

template <>
struct Composition<Mish> : Defaults {
  static Tensor forward(const Tensor& x, const double*) { return at::mish(x); }
  static Tensor backward(const Tensor& g, const Tensor& x, const double*) {
    // With t = tanh(softplus(x)): t + x (1 - t^2) sigmoid(x). See Silu.
    const Tensor t = at::tanh(at::softplus(x));
    const Tensor s = at::sigmoid(x);
    return at::mul(g, at::add(t, at::mul(x, at::mul(s, at::rsub(at::square(t), 1)))));
  }
};

template <>
struct Composition<Sigmoid> : Defaults {
  static Tensor forward(const Tensor& x, const double*) { return at::sigmoid(x); }
  static Tensor backward(const Tensor& g, const Tensor& y, const double*) {
    return at::sigmoid_backward(g, y);
  }
};

// With y = log(sigmoid(x)): dy/dx = sigmoid(-x) = 1 - e^y.
template <>
struct Composition<Logsigmoid> : Defaults {
  static constexpr bool keeps_strides = false;  // at::log_sigmoid is contiguous
  static Tensor forward(const Tensor& x, const double*) { return at::log_sigmoid(x); }
  static Tensor backward(const Tensor& g, const Tensor& y, const double*) {
    return at::neg(at::mul(g, at::expm1(y)));
  }
};

template <>
struct Composition<Tanh> : Defaults {
  static Tensor forward(const Tensor& x, const double*) { return at::tanh(x); }
  static Tensor backward(const Tensor& g, const Tensor& y, const double*) {
    return at::tanh_backward(g, y);
  }
};

template <>
struct Composition<Hardtanh> : Defaults {
  static void check(const double* p) {
    TORCH_CHECK_VALUE(!(p[0] > p[1]),
                      "fastact.hardtanh(): min_val: expected at most max_val, got min_val=", p[0],
                      ", max_val=", p[1]);
  }
  static Tensor forward(const Tensor& x, const double* p) { return at::hardtanh(x, p[0], p[1]); }
  static Tensor backward(const Tensor& g, const Tensor& y, const double* p) {
    return at::hardtanh_backward(g, y, p[0], p[1]);
  }
};

template <>
struct Composition<Hardsigmoid> : Defaults {
  static Tensor forward(const Tensor& x, const double*) {
    // at::hardsigmoid has no forward derivative of its backward.
    return x.is_floating_point() && has_sizes(x) ? at::div(at::hardtanh(at::add(x, 3), 0, 6), 6)
                                                 : at::hardsigmoid(x);
  }
  static Tensor backward(const Tensor& g, const Tensor& x, const double*) {
    // Not at::hardsigmoid_backward, which cannot be differentiated.
    return at::hardtanh_backward(at::div(g, 6), x, -3, 3);
  }
};

template <>
struct Composition<Hardswish> : Defaults {
  static Tensor forward(const Tensor& x, const double*) { return at::hardswish(x); }
  static Tensor backward(const Tensor& g, const Tensor& x, const double*) {
    return at::hardswish_backward(g, x);
  }
};

template <>
struct Composition<Softplus> : Defaults {
  static Tensor forward(const Tensor& x, const double* p) { return at::softplus(x, p[0], p[1]); }
  static Tensor backward(const Tensor& g, const Tensor& x, const double* p) {
    return at::softplus_backward(g, x, p[0], p[1]);
  }
};

template <>
struct Composition<Softsign> : Defaults {
  static Tensor forward(const Tensor& x, const double*) {
    // With a tensor, as Python adds a number: nested tensors have no add() of a scalar.
    return at::div(x, at::add(at::abs(x), at::native::wrapped_scalar_tensor(1)));
  }
  static Tensor backward(const Tensor& g, const Tensor& x, const double*) {
    return at::div(g, at::square(at::add(at::abs(x), 1)));
  }
};

template <>
struct Composition<Tanhshrink> : Defaults {
  static Tensor forward(const Tensor& x, const double*) { return at::sub(x, at::tanh(x)); }
  static Tensor backward(const Tensor& g, const Tensor& x, const double*) {
    return at::mul(g, at::square(at::tanh(x)));
  }
};

// Both shrinks: the output is 0 exactly where the gradient is.
template <>
struct Composition<Softshrink> : Defaults {
  static void check(const double* p) {
    TORCH_CHECK(p[0] >= 0, "fastact.softshrink(): lambd: expected a number greater or equal to 0, ",
                "got ", p[0]);
  }
  static Tensor forward(const Tensor& x, const double* p) { return at::softshrink(x, p[0]); }
  static Tensor backward(const Tensor& g, const Tensor& y, const double*) {
    return at::hardshrink_backward(g, y, 0);
  }
};

template <>
struct Composition<Hardshrink> : Defaults {
  static Tensor forward(const Tensor& x, const double* p) { return at::hardshrink(x, p[0]); }
  static Tensor backward(const Tensor& g, const Tensor& saved, const double* p) {
    return at::hardshrink_backward(g, saved, Hardshrink::saves_output(p) ? 0. : p[0]);
  }
};

template <>
struct Composition<Threshold> : Defaults {
  static Tensor forward(const Tensor& x, const double* p) { return at::threshold(x, p[0], p[1]); }
  static Tensor backward(const Tensor& g, const Tensor& saved, const double* p) {
    return at::threshold_backward(g, saved, p[0]);
  }
};

}  // namespace
}  // namespace fastact
