// An operator of the library as C++ calls it: through the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <atomic>
#include <string>
#include <utility>

namespace fastact {

using at::Tensor;

template <class Schema>
class Operator;

// Declared once, beside the family's other declarations, by its name and the C++ signature of its
// schema; autograd, autocast, registration and the bindings refer to that object.
template <class Result, class... Arguments>
class Operator<Result(Arguments...)> {
 public:
  constexpr explicit Operator(const char* name) : name_(name) {}

  const char* name() const { return name_; }

  Result call(Arguments... arguments) const {
    return handle().call(std::forward<Arguments>(arguments)...);
  }
  Result redispatch(c10::DispatchKeySet keys, Arguments... arguments) const {
    return handle().redispatch(keys, std::forward<Arguments>(arguments)...);
  }

 private:
  using Handle = c10::TypedOperatorHandle<Result(Arguments...)>;

  // Looked up by name at the first call: the schemas may not be defined when this is constructed.
  const Handle& handle() const {
    const Handle* handle = handle_.load(std::memory_order_acquire);
    if (C10_UNLIKELY(!handle)) {
      // Leaked: tensors call operators while the process ends.
      const auto* found =
          new Handle(c10::Dispatcher::singleton()
                         .findSchemaOrThrow((std::string("fastact::") + name_).c_str(), "")
                         .template typed<Result(Arguments...)>());
      if (handle_.compare_exchange_strong(handle, found, std::memory_order_acq_rel)) {
        handle = found;
      } else {
        delete found;  // another thread was faster
      }
    }
    return *handle;
  }

  const char* name_;
  mutable std::atomic<const Handle*> handle_ = nullptr;
};

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
