// Autograd of the unary activations, their fake kernels, and the ATen composition for every backend
// without kernels of its own.
#include <ATen/FunctionalTensorWrapper.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "activation.h"
#include "autograd/node.h"
#include "core/checks.h"
#include "core/registration.h"

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
struct UnaryBackward final : torch::autograd::TraceableFunction {
  const Activation* activation = nullptr;
  Parameters parameters{};
  SavedVariable saved;

  std::string name() const override { return std::string("fastact::") + activation->name; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    saved.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(1);
    if (grads[0].defined() && task_should_compute_output(0)) {
      result[0] = activation->call_backward(grads[0], saved.unpack(getptr()), parameters.data());
    }
    return result;
  }

  bool saves_output() const { return activation->saves_output(parameters.data()); }

  void compiled_args(CompiledNodeArgs& args) const override {
    args.collect(static_cast<int64_t>(activation->index));
    for (double p : parameters) {
      args.collect(p);
    }
    args.collect(saved, saves_output());
  }

  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& swap) override {
    swap.before(saved);
    variable_list result = apply(variable_list(grads));
    swap.after(saved);
    return result;
  }
};

c10::intrusive_ptr<UnaryBackward> unary_node(const Activation& activation, const Tensor& self,
                                             const double* parameters) {
  auto node = make_node<UnaryBackward>(self);
  if (node) {
    node->activation = &activation;
    node->parameters = copy_parameters(activation, parameters);
  }
  return node;
}

// What the node and the backward operator differentiate; ATen's own autograd does the rest
// (complex, sparse and nested tensors, forward mode).
bool differentiated_here(const Tensor& self) {
  return is_kernel_dtype(self.scalar_type()) && self.layout() == at::kStrided &&
         !self.is_nested() && !is_dual(self);
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
  check_unary_backward(activation, grad, saved);
  if (compute_requires_grad(grad, saved) || !differentiated_here(saved) || is_dual(grad)) {
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

}  // namespace

TORCH_LIBRARY_IMPL(fastact, Autograd, m) {
  implement_unary(m, KeyedUnaryKernels{forward_autograd, inplace_autograd, backward_autograd});
}

TORCH_LIBRARY_IMPL(fastact, ADInplaceOrView, m) {
  implement_unary(m, KeyedUnaryKernels{nullptr, inplace_version, nullptr});
}

TORCH_LIBRARY_IMPL(fastact, Functionalize, m) {
  implement_unary(m, UnaryKernels{nullptr, inplace_functionalize, nullptr});
}

TORCH_LIBRARY_IMPL(fastact, Meta, m) {
  implement_unary(m, UnaryKernels{forward_meta, inplace_meta, backward_meta});
}

FASTACT_IMPL_COMPOSITIONS(m) {
  implement_unary(m, UnaryKernels{forward_composed, inplace_composed, backward_composed});
}

}  // namespace fastact
