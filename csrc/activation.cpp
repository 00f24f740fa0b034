#include "activation.h"

#include <unordered_map>

#include "autograd/compositions.h"

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
  row.check = &Composition<A>::check;
  row.compose = &Composition<A>::forward;
  row.compose_backward = &Composition<A>::backward;
  row.call = &Operators<A>::call;
  row.call_ = &Operators<A>::call_;
  row.call_backward = &Operators<A>::call_backward;
  row.redispatch = &Operators<A>::redispatch;
  row.redispatch_ = &Operators<A>::redispatch_;
  row.redispatch_backward = &Operators<A>::redispatch_backward;
  return row;
}

template <class... A>
constexpr std::array<Activation, sizeof...(A)> rows(ActivationList<A...>) {
  return {row<A>(kIndexOf<A>)...};
}

constexpr auto kActivations = rows(Activations{});

}  // namespace

const Activation& activation_at(int index) { return kActivations[index]; }

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

}  // namespace fastact
