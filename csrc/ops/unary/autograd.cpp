// Autograd of the unary activations, their fake kernels, and the ATen composition for every backend
// without kernels of its own.
#include <ATen/FunctionalTensorWrapper.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "core/activation.h"
#include "core/checks.h"
#include "core/node.h"
#include "core/registration.h"
#include "ops/unary/unary.h"

namespace fastact {
namespace {

using Parameters = std::array<double, kMaxParameters>;

Parameters copy_parameters(const Activation& activation, const double* parameters) {
  Parameters copy{};
  std::copy_n(parameters, activation.num_parameters, copy.begin());
  return copy;
}

// Calls the backward operator, so that tracers see one operator. A saved output must be unpacked
// with the node it belongs to.
struct UnaryNode final : OperatorNode<UnaryNode> {
  const Activation* activation = nullptr;
  Parameters parameters{};
  SavedVariable saved;

  std::string name() const override { return std::string("fastact::") + activation->name; }

  bool saves_output() const { return activation->saves_output(parameters.data()); }

  template <class F>
  void each_saved(const F& f) {
    f(saved, saves_output());
  }
  template <class F>
  void each_attribute(const F& f) {
    auto index = static_cast<int64_t>(activation->index);
    f(index);
    for (double& parameter : parameters) {
      f(parameter);
    }
  }

  void backward(const Tensor& grad, variable_list& gradients) {
    if (task_should_compute_output(0)) {
      gradients[0] = activation->call_backward(grad, saved.unpack(getptr()), parameters.data());
    }
  }
};

c10::intrusive_ptr<UnaryNode> unary_node(const Activation& activation, const Tensor& self,
                                         const double* parameters) {
  auto node = make_node<UnaryNode>(self);
  if (node) {
    node->activation = &activation;
    node->parameters = copy_parameters(activation, parameters);
  }
  return node;
}

// What the node and the backward operator differentiate; ATen's own autograd does the rest
// (complex, sparse and nested tensors, forward mode).
bool differentiated_here(const Tensor& self) {
  return has_sizes(self) && is_kernel_dtype(self.scalar_type()) && !is_dual(self);
}

Tensor forward_autograd(c10::DispatchKeySet keys, const Activation& activation, const Tensor& self,
                        const double* parameters) {
  if (C10_UNLIKELY(!differentiated_here(self))) {
    return activation.compose(self, parameters);
  }
  const auto node = unary_node(activation, self, parameters);
  Tensor result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return activation.redispatch(keys & c10::after_autograd_keyset, self, parameters);
  }();
  if (node) {
    set_history(result, node);
    const bool is_output = node->saves_output();
    node->saved = SavedVariable(is_output ? result : self, is_output);
    node_is_complete(node);
  }
  return result;
}

Tensor backward_autograd(c10::DispatchKeySet keys, const Activation& activation, const Tensor& grad,
                         const Tensor& saved, const double* parameters) {
  if (compute_requires_grad(grad, saved) || !differentiated_here(saved) || is_dual(grad)) {
    check_unary_backward(activation, grad, saved);
    return activation.compose_backward(grad, saved, parameters);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return activation.redispatch_backward(keys & c10::after_autograd_keyset, grad, saved, parameters);
}

Tensor& inplace_autograd(c10::DispatchKeySet keys, const Activation& activation, Tensor& self,
                         const double* parameters) {
  if (C10_UNLIKELY(!differentiated_here(self))) {
    return self.copy_(activation.compose(self, parameters));
  }
  torch::autograd::check_inplace(self, compute_requires_grad(self));
  const auto node = unary_node(activation, self, parameters);
  const bool is_output = activation.saves_output(parameters);
  if (node && !is_output) {
    node->saved = SavedVariable(self.clone(), /*is_output=*/false);
  }
  {
    at::AutoDispatchBelowAutograd guard;
    activation.redispatch_(keys & c10::after_autograd_keyset, self, parameters);
  }
  if (node) {
    torch::autograd::rebase_history(self, node);
    if (is_output) {
      node->saved = SavedVariable(self, /*is_output=*/true, self.is_view());
    }
    node_is_complete(node);
  }
  return self;
}

// The version counter of an in-place operator.
Tensor& inplace_version(c10::DispatchKeySet keys, const Activation& activation, Tensor& self,
                        const double* parameters) {
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    activation.redispatch_(keys & c10::after_ADInplaceOrView_keyset, self, parameters);
  }
  torch::autograd::increment_version(self);
  return self;
}

// Functionalization sees the functional operator. (Tag::inplace in place of this kernel makes
// Inductor compute wrong gradients.)
Tensor& inplace_functionalize(const Activation& activation, Tensor& self,
                              const double* parameters) {
  namespace functional = at::functionalization::impl;
  at::AutoDispatchSkipFunctionalize guard;
  if (!functional::isFunctionalTensor(self)) {
    return activation.call_(self, parameters);
  }
  functional::sync(self);
  functional::replace_(self, activation.call(functional::from_functional_tensor(self), parameters));
  functional::commit_update(self);
  functional::sync(self);
  return self;
}

Tensor forward_meta(const Activation& activation, const Tensor& self, const double* parameters) {
  activation.check(parameters);
  if (!is_kernel_dtype(self.scalar_type())) {
    return activation.compose(self, parameters);
  }
  return activation.keeps_strides ? at::empty_like(self)
                                  : at::empty_symint(self.sym_sizes(), self.options());
}

Tensor& inplace_meta(const Activation& activation, Tensor& self, const double* parameters) {
  activation.check(parameters);
  return self;
}

Tensor backward_meta(const Activation& activation, const Tensor& grad, const Tensor& saved,
                     const double* parameters) {
  check_unary_backward(activation, grad, saved);
  return is_kernel_dtype(saved.scalar_type())
             ? at::empty_like(saved)
             : activation.compose_backward(grad, saved, parameters);
}

Tensor forward_composed(const Activation& activation, const Tensor& self,
                        const double* parameters) {
  check_defined(activation.name, "input", self);
  return activation.compose(self, parameters);
}

Tensor& inplace_composed(const Activation& activation, Tensor& self, const double* parameters) {
  check_defined({activation.name, "_"}, "input", self);
  return self.copy_(activation.compose(self, parameters));
}

Tensor backward_composed(const Activation& activation, const Tensor& grad, const Tensor& saved,
                         const double* parameters) {
  check_unary_backward(activation, grad, saved);
  return activation.compose_backward(grad, saved, parameters);
}

// The kernels are the rows' own: one set of functions serves every activation.
bool register_all() {
  const auto implement = [](const auto& kernels) {
    return [&kernels](torch::Library& m) { implement_unary(m, kernels); };
  };
  const KeyedUnaryKernels autograd{forward_autograd, inplace_autograd, backward_autograd};
  const KeyedUnaryKernels version{nullptr, inplace_version, nullptr};
  const UnaryKernels functionalize{nullptr, inplace_functionalize, nullptr};
  const UnaryKernels cpu{unary_cpu, unary_inplace_cpu, unary_backward_cpu};
  const UnaryKernels meta{forward_meta, inplace_meta, backward_meta};
  const UnaryKernels composed{forward_composed, inplace_composed, backward_composed};
  implement_for(kAutogradKeys, implement(autograd));
  implement_for({c10::DispatchKey::ADInplaceOrView}, implement(version));
  implement_for({c10::DispatchKey::Functionalize}, implement(functionalize));
  implement_for(kCpuKeys, implement(cpu));
  implement_for(kFakeKeys, implement(meta));
  implement_for(kComposedKeys, implement(composed));
  for (const Activation& activation : activations()) {
    implement_autocast(activation.name);
  }
  return true;
}

const bool registered = register_all();

}  // namespace
}  // namespace fastact
