// Elementwise kernels over contiguous memory, for the width that FASTACT_ISA chose.
#pragma once

#include "cpu/kernels/compute_type.h"
#include "cpu/kernels/tables.h"
#include "math/activations.h"

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
  int64_t i = 0;
  for (; i + V::size <= n; i += V::size) {
    f.forward(V::load(x + i)).store(y + i);
  }
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    f.forward(V::load(x + i, rest)).store(y + i, rest);
  }
}

template <class A, class T>
void backward(const void* grad_, const void* saved_, void* dx_, int64_t n,
              const double* parameters) {
  using V = Group<T>;
  const T* grad = static_cast<const T*>(grad_);
  const T* saved = static_cast<const T*>(saved_);
  T* dx = static_cast<T*>(dx_);
  const typename A::template Formula<V> f(parameters);
  int64_t i = 0;
  for (; i + V::size <= n; i += V::size) {
    f.backward(V::load(grad + i), V::load(saved + i)).store(dx + i);
  }
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    f.backward(V::load(grad + i, rest), V::load(saved + i, rest)).store(dx + i, rest);
  }
}

template <class T>
void prelu(const void* x_, const void* slope_, int slope_step, void* y_, int64_t n) {
  using V = Group<T>;
  const T* x = static_cast<const T*>(x_);
  const T* slope = static_cast<const T*>(slope_);
  T* y = static_cast<T*>(y_);
  const V one_slope(load_scalar(slope));
  int64_t i = 0;
  for (; i + V::size <= n; i += V::size) {
    const V s = slope_step ? V::load(slope + i) : one_slope;
    Prelu::forward(V::load(x + i), s).store(y + i);
  }
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    const V s = slope_step ? V::load(slope + i, rest) : one_slope;
    Prelu::forward(V::load(x + i, rest), s).store(y + i, rest);
  }
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
  const auto step = [&](int64_t i, int count) {
    const bool whole = count == V::size;
    const V g = whole ? V::load(grad + i) : V::load(grad + i, count);
    const V v = whole ? V::load(x + i) : V::load(x + i, count);
    if (dx) {
      const V s = !slope_step ? one_slope : whole ? V::load(slope + i) : V::load(slope + i, count);
      const V d = Prelu::backward_input(g, v, s);
      whole ? d.store(dx + i) : d.store(dx + i, count);
    }
    if (dslope) {
      const V d = Prelu::backward_slope(g, v);  // 0 in the lanes that a masked load left out
      if (!slope_step) {
        sum = sum + d;
      } else if (whole) {
        (V::load(dslope + i) + d).store(dslope + i);
      } else {
        (V::load(dslope + i, count) + d).store(dslope + i, count);
      }
    }
  };
  int64_t i = 0;
  for (; i + V::size <= n; i += V::size) {
    step(i, V::size);
  }
  if (i < n) {
    step(i, static_cast<int>(n - i));
  }
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
  int64_t i = 0;
  for (; i + V::size <= n; i += V::size) {
    (f.forward(V::load(a + i)) * V::load(b + i)).store(y + i);
  }
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    (f.forward(V::load(a + i, rest)) * V::load(b + i, rest)).store(y + i, rest);
  }
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
  for (int64_t i = 0; i < n; i += V::size) {
    const bool whole = i + V::size <= n;
    const int rest = static_cast<int>(n - i);
    const auto load = [&](const T* p) { return whole ? V::load(p + i) : V::load(p + i, rest); };
    const V g = load(grad);
    const V x = load(a);
    const V y = f.forward(x);
    const V dx = gate_gradient(f, g * load(b), x, y, saves_output);
    const V dgate = g * y;
    whole ? dx.store(da + i) : dx.store(da + i, rest);
    whole ? dgate.store(db + i) : dgate.store(db + i, rest);
  }
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
