// An activation as torch sees it: the type-erased row that fused operators look up by name, and the
// templates that turn a row of math/activations.h into operators with typed schemas.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "math/activations.h"

namespace fastact {

using at::Tensor;

constexpr int kMaxParameters = 4;

// Every function takes the parameters as an array of `num_parameters` doubles.
struct Activation {
  int index;  // position in math/activations.h's list, and in the kernel tables
  const char* name;
  int num_parameters;
  std::array<const char*, kMaxParameters> parameter_names;
  std::array<double, kMaxParameters> parameter_defaults;
  int cost;  // cycles per 16 fp32 elements
  bool (*saves_output)(const double* parameters);

  // Raises what PyTorch raises for a parameter out of range.
  void (*check)(const double* parameters);
  // The differentiable ATen composition; backward reads the output or the input (saves_output).
  Tensor (*compose)(const Tensor& self, const double* parameters);
  Tensor (*compose_backward)(const Tensor& grad, const Tensor& saved, const double* parameters);

  // The operators, reached through the dispatcher: fastact::NAME, NAME_ and NAME_backward.
  Tensor (*call)(const Tensor& self, const double* parameters);
  Tensor& (*call_)(Tensor& self, const double* parameters);
  Tensor (*call_backward)(const Tensor& grad, const Tensor& saved, const double* parameters);
  Tensor (*redispatch)(c10::DispatchKeySet, const Tensor& self, const double* parameters);
  Tensor& (*redispatch_)(c10::DispatchKeySet, Tensor& self, const double* parameters);
  Tensor (*redispatch_backward)(c10::DispatchKeySet, const Tensor& grad, const Tensor& saved,
                                const double* parameters);
};

const Activation& activation_at(int index);
// Null where the registry has no such name.
const Activation* find_activation(std::string_view name);

// The dtypes that the kernels compute; every other one runs as the ATen composition.
inline bool is_kernel_dtype(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 ||
         dtype == at::kHalf;
}

template <class Schema>
c10::TypedOperatorHandle<Schema> find_operator(const std::string& name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(("fastact::" + name).c_str(), "")
      .typed<Schema>();
}

namespace {

template <class F, class... A>
void for_each_activation_in(ActivationList<A...>, const F& f) {
  int index = 0;
  (f(A{}, index++), ...);
}

// Calls f(A{}, index) for every activation A.
template <class F>
void for_each_activation(const F& f) {
  for_each_activation_in(Activations{}, f);
}

template <class A, class... As>
constexpr int index_of(ActivationList<As...>) {
  int index = 0;
  bool found = false;
  ((found = found || std::is_same_v<A, As>, index += found ? 0 : 1), ...);
  return index;
}

template <class A>
inline constexpr int kIndexOf = index_of<A>(Activations{});

// The typed operators of one activation: a double argument for each parameter.
template <class A, class I = std::make_index_sequence<A::num_parameters>>
struct Operators;

template <class A, std::size_t... I>
struct Operators<A, std::index_sequence<I...>> {
  template <std::size_t>
  using Real = double;
  using Forward = Tensor(const Tensor&, Real<I>...);
  using Inplace = Tensor&(Tensor&, Real<I>...);
  using Backward = Tensor(const Tensor&, const Tensor&, Real<I>...);

  static const auto& forward() {
    static const auto handle = find_operator<Forward>(A::name);
    return handle;
  }
  static const auto& inplace() {
    static const auto handle = find_operator<Inplace>(std::string(A::name) + "_");
    return handle;
  }
  static const auto& backward() {
    static const auto handle = find_operator<Backward>(std::string(A::name) + "_backward");
    return handle;
  }

  static Tensor call(const Tensor& self, const double* p) { return forward().call(self, p[I]...); }
  static Tensor& call_(Tensor& self, const double* p) { return inplace().call(self, p[I]...); }
  static Tensor call_backward(const Tensor& grad, const Tensor& saved, const double* p) {
    return backward().call(grad, saved, p[I]...);
  }
  static Tensor redispatch(c10::DispatchKeySet keys, const Tensor& self, const double* p) {
    return forward().redispatch(keys, self, p[I]...);
  }
  static Tensor& redispatch_(c10::DispatchKeySet keys, Tensor& self, const double* p) {
    return inplace().redispatch(keys, self, p[I]...);
  }
  static Tensor redispatch_backward(c10::DispatchKeySet keys, const Tensor& grad,
                                    const Tensor& saved, const double* p) {
    return backward().redispatch(keys, grad, saved, p[I]...);
  }

  // Adaptors: one type-erased implementation becomes a kernel with this activation's schema.
  template <auto F>
  static Tensor forward_kernel(const Tensor& self, Real<I>... p) {
    const double parameters[] = {p..., 0};
    return F(activation_at(kIndexOf<A>), self, parameters);
  }
  template <auto F>
  static Tensor& inplace_kernel(Tensor& self, Real<I>... p) {
    const double parameters[] = {p..., 0};
    return F(activation_at(kIndexOf<A>), self, parameters);
  }
  template <auto F>
  static Tensor backward_kernel(const Tensor& grad, const Tensor& saved, Real<I>... p) {
    const double parameters[] = {p..., 0};
    return F(activation_at(kIndexOf<A>), grad, saved, parameters);
  }
  template <auto F>
  static Tensor forward_keyed(c10::DispatchKeySet keys, const Tensor& self, Real<I>... p) {
    const double parameters[] = {p..., 0};
    return F(keys, activation_at(kIndexOf<A>), self, parameters);
  }
  template <auto F>
  static Tensor& inplace_keyed(c10::DispatchKeySet keys, Tensor& self, Real<I>... p) {
    const double parameters[] = {p..., 0};
    return F(keys, activation_at(kIndexOf<A>), self, parameters);
  }
  template <auto F>
  static Tensor backward_keyed(c10::DispatchKeySet keys, const Tensor& grad, const Tensor& saved,
                               Real<I>... p) {
    const double parameters[] = {p..., 0};
    return F(keys, activation_at(kIndexOf<A>), grad, saved, parameters);
  }
};

// Registers one set of type-erased implementations for every activation.
template <auto Forward, auto Inplace, auto Backward>
void implement_unary(torch::Library& m) {
  for_each_activation([&](auto activation, int) {
    using A = decltype(activation);
    const std::string name = A::name;
    m.impl(name.c_str(), TORCH_FN((Operators<A>::template forward_kernel<Forward>)));
    m.impl((name + "_").c_str(), TORCH_FN((Operators<A>::template inplace_kernel<Inplace>)));
    m.impl((name + "_backward").c_str(),
           TORCH_FN((Operators<A>::template backward_kernel<Backward>)));
  });
}

}  // namespace
}  // namespace fastact
