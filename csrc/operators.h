// Typed handles of operators: how C++ calls one through the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <utility>

namespace fastact {

using at::Tensor;

template <class Schema>
c10::TypedOperatorHandle<Schema> find_operator(const std::string& name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(("fastact::" + name).c_str(), "")
      .typed<Schema>();
}

// The C++ signatures of a unary activation's operators: one double for each of N parameters.
template <class I>
struct UnarySchemasOf;
template <std::size_t... I>
struct UnarySchemasOf<std::index_sequence<I...>> {
  template <std::size_t>
  using Real = double;
  using Forward = Tensor(const Tensor&, Real<I>...);
  using Inplace = Tensor&(Tensor&, Real<I>...);
  using Backward = Tensor(const Tensor&, const Tensor&, Real<I>...);
};
template <int N>
using UnarySchemas = UnarySchemasOf<std::make_index_sequence<N>>;

}  // namespace fastact
