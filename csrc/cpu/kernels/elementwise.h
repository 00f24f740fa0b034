// Elementwise kernels over contiguous memory, for the width that FASTACT_ISA chose.
#pragma once

#include "cpu/kernels/kernel_table.h"
#include "cpu/kernels/loops.h"
#include "math/activations.h"
#include "math/compute_type.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// Registers in flight: one load to use takes several cycles, and a formula's chain of fused
// multiply-adds four cycles each, so that a lone vector would wait for itself.
constexpr int kUnroll = 4;

template <class T>
using Group = Pack<Vec<compute_t<T>>, kUnroll>;

// The tail runs through the same code as the body, by masked loads and stores: a value does not
// depend on its position.
template <class A, class T>
void forward(const void* x_, void* y_, int64_t n, const double* parameters) {
  using V = Group<T>;
  const T* x = static_cast<const T*>(x_);
  T* y = static_cast<T*>(y_);
  const typename A::template Formula<V> f(parameters);
  for_each_vector<V>(n, [&](int64_t i, auto count) FASTACT_LAMBDA {
    store_lanes(f.forward(load_lanes<V>(x + i, count)), y + i, count);
  });
}

template <class A, class T>
void backward(const void* grad_, const void* saved_, void* dx_, int64_t n,
              const double* parameters) {
  using V = Group<T>;
  const T* grad = static_cast<const T*>(grad_);
  const T* saved = static_cast<const T*>(saved_);
  T* dx = static_cast<T*>(dx_);
  const typename A::template Formula<V> f(parameters);
  for_each_vector<V>(n, [&](int64_t i, auto count) FASTACT_LAMBDA {
    const V g = load_lanes<V>(grad + i, count);
    store_lanes(f.backward(g, load_lanes<V>(saved + i, count)), dx + i, count);
  });
}

template <class T>
void prelu(const void* x_, const void* slope_, int slope_step, void* y_, int64_t n) {
  using V = Group<T>;
  const T* x = static_cast<const T*>(x_);
  const T* slope = static_cast<const T*>(slope_);
  T* y = static_cast<T*>(y_);
  const V one_slope(load_scalar(slope));
  for_each_vector<V>(n, [&](int64_t i, auto count) FASTACT_LAMBDA {
    const V s = slope_step ? load_lanes<V>(slope + i, count) : one_slope;
    store_lanes(Prelu::forward(load_lanes<V>(x + i, count), s), y + i, count);
  });
}

template <class T>
void prelu_backward(const void* grad_, const void* x_, const void* slope_, int slope_step,
                    void* dx_, void* dslope_, int64_t n) {
  using V = Group<T>;
  const T* grad = static_cast<const T*>(grad_);
  const T* x = static_cast<const T*>(x_);
  const T* slope = static_cast<const T*>(slope_);
  T* dx = static_cast<T*>(dx_);
  compute_t<T>* dslope = static_cast<compute_t<T>*>(dslope_);
  const V one_slope(load_scalar(slope));
  V sum(compute_t<T>(0));
  for_each_vector<V>(n, [&](int64_t i, auto count) FASTACT_LAMBDA {
    const V g = load_lanes<V>(grad + i, count);
    const V v = load_lanes<V>(x + i, count);
    if (dx) {
      const V s = slope_step ? load_lanes<V>(slope + i, count) : one_slope;
      store_lanes(Prelu::backward_input(g, v, s), dx + i, count);
    }
    if (dslope) {
      const V d = Prelu::backward_slope(g, v);  // 0 in the lanes that a masked load left out
      if (slope_step) {
        store_lanes(load_lanes<V>(dslope + i, count) + d, dslope + i, count);
      } else {
        sum = sum + d;
      }
    }
  });
  if (dslope && !slope_step) {
    dslope[0] += horizontal_sum(sum);
  }
}

template <class A, class T>
void gated(const void* a_, const void* b_, void* y_, int64_t n) {
  using V = Group<T>;
  const T* a = static_cast<const T*>(a_);
  const T* b = static_cast<const T*>(b_);
  T* y = static_cast<T*>(y_);
  const typename A::template Formula<V> f(nullptr);
  for_each_vector<V>(n, [&](int64_t i, auto count) FASTACT_LAMBDA {
    const V gate = f.forward(load_lanes<V>(a + i, count));
    store_lanes(gate * load_lanes<V>(b + i, count), y + i, count);
  });
}

// Where both input and output are at hand, the output is read if that suffices; but of a sigmoid
// near 1, it has lost the digits of the derivative.
template <class F, class V>
FASTACT_FN V gate_gradient(const F& f, V grad, V x, V y, bool saves_output) {
  return f.backward(grad, saves_output ? y : x);
}
template <class V>
FASTACT_FN V gate_gradient(const Sigmoid::Formula<V>&, V grad, V x, V y, bool) {
  return grad * (y * sigmoid(-x));
}

template <class A, class T>
void gated_backward(const void* grad_, const void* a_, const void* b_, void* da_, void* db_,
                    int64_t n) {
  using V = Group<T>;
  const T* grad = static_cast<const T*>(grad_);
  const T* a = static_cast<const T*>(a_);
  const T* b = static_cast<const T*>(b_);
  T* da = static_cast<T*>(da_);
  T* db = static_cast<T*>(db_);
  const typename A::template Formula<V> f(nullptr);
  const bool saves_output = A::saves_output(nullptr);
  for_each_vector<V>(n, [&](int64_t i, auto count) FASTACT_LAMBDA {
    const V g = load_lanes<V>(grad + i, count);
    const V x = load_lanes<V>(a + i, count);
    const V y = f.forward(x);
    const V value = load_lanes<V>(b + i, count);
    store_lanes(gate_gradient(f, g * value, x, y, saves_output), da + i, count);
    store_lanes(g * y, db + i, count);
  });
}

template <class T, class List>
struct Elementwise;

template <class T, class... A>
struct Elementwise<T, ActivationList<A...>> {
  static constexpr UnaryKernel kForward[] = {&forward<A, T>...};
  static constexpr UnaryBackwardKernel kBackward[] = {&backward<A, T>...};
  static constexpr ElementwiseKernels kKernels = {
      kForward,
      kBackward,
      &prelu<T>,
      &prelu_backward<T>,
      {&gated<Sigmoid, T>, &gated<Silu, T>, &gated<Gelu, T>, &gated<Relu, T>},
      {&gated_backward<Sigmoid, T>, &gated_backward<Silu, T>, &gated_backward<Gelu, T>,
       &gated_backward<Relu, T>}};
};

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
