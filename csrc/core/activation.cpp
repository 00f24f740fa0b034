#include "core/activation.h"

#include <torch/library.h>

#include <memory>
#include <unordered_map>
#include <vector>

#include "core/checks.h"
#include "core/operator.h"
#include "math/activations.h"
#include "ops/unary/compositions.h"

namespace fastact {
namespace {

template <class A>
constexpr Activation row(int index) {
  static_assert(A::num_parameters <= kMaxParameters);
  Activation row{};
  row.index = index;
  row.name = A::name;
  row.num_parameters = A::num_parameters;
  for (int i = 0; i < A::num_parameters; ++i) {
    row.parameter_names[i] = A::parameters[i].name;
    row.parameter_defaults[i] = A::parameters[i].value;
  }
  row.cost = A::cost;
  row.saves_output = &A::saves_output;
  row.keeps_strides = Composition<A>::keeps_strides;
  row.check = &Composition<A>::check;
  row.compose = &Composition<A>::forward;
  row.compose_backward = &Composition<A>::backward;
  return row;
}

template <class... A>
constexpr std::array<Activation, sizeof...(A)> rows(ActivationList<A...>) {
  int index = 0;
  return {row<A>(index++)...};
}

constexpr auto kActivations = rows(Activations{});

// Everything below is compiled once for each number of parameters, not for each activation: the
// dispatcher's wrappers around a kernel take seconds to compile.
template <class I>
struct Arity;

template <std::size_t... I>
struct Arity<std::index_sequence<I...>> {
  using Schemas = UnarySchemasOf<std::index_sequence<I...>>;
  template <std::size_t>
  using Real = double;

  // By index; null for the activations with another number of parameters.
  struct Operators {
    std::string names[3];
    Operator<typename Schemas::Forward> forward{names[0].c_str()};
    Operator<typename Schemas::Inplace> inplace{names[1].c_str()};
    Operator<typename Schemas::Backward> backward{names[2].c_str()};

    explicit Operators(const std::string& name) : names{name, name + "_", name + "_backward"} {}
  };

  static const Operators& operators(const Activation& activation) {
    static const auto all = [] {
      std::vector<std::unique_ptr<Operators>> operators(kActivations.size());
      for (const Activation& a : kActivations) {
        if (a.num_parameters == sizeof...(I)) {
          operators[a.index] = std::make_unique<Operators>(a.name);
        }
      }
      return operators;
    }();
    return *all[activation.index];
  }

  static Tensor call(const Activation& a, const Tensor& self, const double* p) {
    return operators(a).forward.call(self, p[I]...);
  }
  static Tensor& call_(const Activation& a, Tensor& self, const double* p) {
    return operators(a).inplace.call(self, p[I]...);
  }
  static Tensor call_backward(const Activation& a, const Tensor& grad, const Tensor& saved,
                              const double* p) {
    return operators(a).backward.call(grad, saved, p[I]...);
  }
  static Tensor redispatch(const Activation& a, c10::DispatchKeySet keys, const Tensor& self,
                           const double* p) {
    return operators(a).forward.redispatch(keys, self, p[I]...);
  }
  static Tensor& redispatch_(const Activation& a, c10::DispatchKeySet keys, Tensor& self,
                             const double* p) {
    return operators(a).inplace.redispatch(keys, self, p[I]...);
  }
  static Tensor redispatch_backward(const Activation& a, c10::DispatchKeySet keys,
                                    const Tensor& grad, const Tensor& saved, const double* p) {
    return operators(a).backward.redispatch(keys, grad, saved, p[I]...);
  }

  static void implement(torch::Library& m, const Activation& a, const UnaryKernels& kernels) {
    const std::string name = a.name;
    if (const auto f = kernels.forward) {
      m.impl(name.c_str(), [&a, f](const Tensor& self, Real<I>... p) {
        const double parameters[] = {p..., 0};
        return f(a, self, parameters);
      });
    }
    if (const auto f = kernels.inplace) {
      m.impl((name + "_").c_str(), [&a, f](Tensor& self, Real<I>... p) -> Tensor& {
        const double parameters[] = {p..., 0};
        return f(a, self, parameters);
      });
    }
    if (const auto f = kernels.backward) {
      m.impl((name + "_backward").c_str(),
             [&a, f](const Tensor& grad, const Tensor& saved, Real<I>... p) {
               const double parameters[] = {p..., 0};
               return f(a, grad, saved, parameters);
             });
    }
  }

  static void implement(torch::Library& m, const Activation& a, const KeyedUnaryKernels& kernels) {
    const std::string name = a.name;
    if (const auto f = kernels.forward) {
      m.impl(name.c_str(), [&a, f](c10::DispatchKeySet keys, const Tensor& self, Real<I>... p) {
        const double parameters[] = {p..., 0};
        return f(keys, a, self, parameters);
      });
    }
    if (const auto f = kernels.inplace) {
      m.impl((name + "_").c_str(),
             [&a, f](c10::DispatchKeySet keys, Tensor& self, Real<I>... p) -> Tensor& {
               const double parameters[] = {p..., 0};
               return f(keys, a, self, parameters);
             });
    }
    if (const auto f = kernels.backward) {
      m.impl((name + "_backward").c_str(), [&a, f](c10::DispatchKeySet keys, const Tensor& grad,
                                                   const Tensor& saved, Real<I>... p) {
        const double parameters[] = {p..., 0};
        return f(keys, a, grad, saved, parameters);
      });
    }
  }
};

// f(Arity<...>{}) for the activation's number of parameters.
template <class F>
decltype(auto) with_arity(const Activation& a, const F& f) {
  static_assert(kMaxParameters == 3);
  switch (a.num_parameters) {
    case 0:
      return f(Arity<std::make_index_sequence<0>>{});
    case 1:
      return f(Arity<std::make_index_sequence<1>>{});
    case 2:
      return f(Arity<std::make_index_sequence<2>>{});
    default:
      return f(Arity<std::make_index_sequence<3>>{});
  }
}

template <class Kernels>
void implement_all(torch::Library& m, const Kernels& kernels) {
  for (const Activation& a : kActivations) {
    with_arity(a, [&](auto arity) { decltype(arity)::implement(m, a, kernels); });
  }
}

}  // namespace

Tensor Activation::call(const Tensor& self, const double* p) const {
  return with_arity(*this, [&](auto arity) { return decltype(arity)::call(*this, self, p); });
}
Tensor& Activation::call_(Tensor& self, const double* p) const {
  return with_arity(*this,
                    [&](auto arity) -> Tensor& { return decltype(arity)::call_(*this, self, p); });
}
Tensor Activation::call_backward(const Tensor& grad, const Tensor& saved, const double* p) const {
  return with_arity(
      *this, [&](auto arity) { return decltype(arity)::call_backward(*this, grad, saved, p); });
}
Tensor Activation::redispatch(c10::DispatchKeySet keys, const Tensor& self, const double* p) const {
  return with_arity(*this,
                    [&](auto arity) { return decltype(arity)::redispatch(*this, keys, self, p); });
}
Tensor& Activation::redispatch_(c10::DispatchKeySet keys, Tensor& self, const double* p) const {
  return with_arity(*this, [&](auto arity) -> Tensor& {
    return decltype(arity)::redispatch_(*this, keys, self, p);
  });
}
Tensor Activation::redispatch_backward(c10::DispatchKeySet keys, const Tensor& grad,
                                       const Tensor& saved, const double* p) const {
  return with_arity(*this, [&](auto arity) {
    return decltype(arity)::redispatch_backward(*this, keys, grad, saved, p);
  });
}

void check_unary_backward(const Activation& activation, const Tensor& grad, const Tensor& saved) {
  check_gradient({activation.name, "_backward"}, grad, "saved", saved);
}

at::ArrayRef<Activation> activations() { return kActivations; }

const Activation* find_activation(std::string_view name) {
  static const auto by_name = [] {
    std::unordered_map<std::string_view, const Activation*> map;
    for (const Activation& activation : kActivations) {
      map.emplace(activation.name, &activation);
    }
    return map;
  }();
  const auto it = by_name.find(name);
  return it == by_name.end() ? nullptr : it->second;
}

void implement_unary(torch::Library& m, const UnaryKernels& kernels) { implement_all(m, kernels); }
void implement_unary(torch::Library& m, const KeyedUnaryKernels& kernels) {
  implement_all(m, kernels);
}

}  // namespace fastact
