// The activations, their gradients, and the gated units.
#pragma once

#include "cuda/kernels/for_each.h"
#include "math/activations.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// Made on the host: a float kernel converts no double parameter.
template <class A, class T>
using FormulaOf = typename A::template Formula<compute_t<T>>;

template <class A, class T>
struct Forward {
  FormulaOf<A, T> formula;
  const T* x;
  T* y;  // may be x

  template <int kCount>
  __device__ __forceinline__ void run(int64_t i) const {
    auto v = Values<T, kCount>::load(x + i);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) v.at[k] = formula.forward(v.at[k]);
    v.store(y + i);
  }
};

template <class A, class T>
struct Backward {
  FormulaOf<A, T> formula;
  const T* grad;
  const T* saved;
  T* dx;  // may be grad

  template <int kCount>
  __device__ __forceinline__ void run(int64_t i) const {
    auto g = Values<T, kCount>::load(grad + i);
    const auto s = Values<T, kCount>::load(saved + i);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      g.at[k] = formula.backward(g.at[k], s.at[k]);
    }
    g.store(dx + i);
  }
};

template <class A, class T>
void forward(const T* x, T* y, int64_t n, const double* parameters, cudaStream_t stream) {
  const Forward<A, T> operation{FormulaOf<A, T>(parameters), x, y};
  launch_for_each<T>(operation, n, is_aligned(x) && is_aligned(y), stream);
}

template <class A, class T>
void backward(const T* grad, const T* saved, T* dx, int64_t n, const double* parameters,
              cudaStream_t stream) {
  const Backward<A, T> operation{FormulaOf<A, T>(parameters), grad, saved, dx};
  launch_for_each<T>(operation, n, is_aligned(grad) && is_aligned(saved) && is_aligned(dx), stream);
}

// ---- gated units: `self` as [outer, 2, length], act(gate) * value ------------------------------

template <class A, class T>
struct Gated {
  FormulaOf<A, T> formula;
  const T* gate;   // the first of the half that is activated
  const T* value;  // and of the other one
  T* y;
  int64_t length;

  template <int kCount>
  __device__ __forceinline__ void run(int64_t i) const {
    const int64_t at = i + divide(i, length) * length;
    auto a = Values<T, kCount>::load(gate + at);
    const auto b = Values<T, kCount>::load(value + at);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) a.at[k] = formula.forward(a.at[k]) * b.at[k];
    a.store(y + i);
  }
};

// Where input and output are at hand the output is read if that suffices; but of a sigmoid near 1
// it has lost the digits of the derivative.
template <class F, class C>
__device__ __forceinline__ C gate_gradient(const F& f, C grad, C x, C y, bool saves_output) {
  return f.backward(grad, saves_output ? y : x);
}
template <class C>
__device__ __forceinline__ C gate_gradient(const Sigmoid::Formula<C>&, C grad, C x, C y, bool) {
  return grad * (y * sigmoid(-x));
}

template <class A, class T>
struct GatedBackward {
  FormulaOf<A, T> formula;
  bool saves_output;
  const T* grad;
  const T* gate;
  const T* value;
  T* dgate;
  T* dvalue;
  int64_t length;

  template <int kCount>
  __device__ __forceinline__ void run(int64_t i) const {
    const int64_t at = i + divide(i, length) * length;
    const auto g = Values<T, kCount>::load(grad + i);
    auto a = Values<T, kCount>::load(gate + at);
    auto b = Values<T, kCount>::load(value + at);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      const compute_t<T> y = formula.forward(a.at[k]);
      a.at[k] = gate_gradient(formula, g.at[k] * b.at[k], a.at[k], y, saves_output);
      b.at[k] = g.at[k] * y;
    }
    a.store(dgate + at);
    b.store(dvalue + at);
  }
};

// The gate is the first half, or the second.
template <class A, class T>
void gated(const T* x, T* y, int64_t outer, int64_t length, bool gate_first, cudaStream_t stream) {
  const int64_t gate = gate_first ? 0 : length;
  const Gated<A, T> operation{FormulaOf<A, T>(nullptr), x + gate, x + (length - gate), y, length};
  const bool wide = length % kLanes<T> == 0 && is_aligned(x) && is_aligned(y);
  launch_for_each<T>(operation, outer * length, wide, stream);
}

template <class A, class T>
void gated_backward(const T* grad, const T* x, T* dx, int64_t outer, int64_t length,
                    bool gate_first, cudaStream_t stream) {
  const int64_t gate = gate_first ? 0 : length;
  const int64_t value = length - gate;
  const GatedBackward<A, T> operation{FormulaOf<A, T>(nullptr),
                                      A::saves_output(nullptr),
                                      grad,
                                      x + gate,
                                      x + value,
                                      dx + gate,
                                      dx + value,
                                      length};
  const bool wide = length % kLanes<T> == 0 && is_aligned(grad) && is_aligned(x) && is_aligned(dx);
  launch_for_each<T>(operation, outer * length, wide, stream);
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
