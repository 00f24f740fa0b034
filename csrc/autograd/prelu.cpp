// Autograd of PReLU, its fake kernels and its ATen composition.
#include "prelu.h"

#include <ATen/ops/_prelu_kernel_backward.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/prelu.h>
#include <torch/library.h>

#include "activation.h"
#include "autograd/node.h"
#include "core/registration.h"
#include "operators.h"

namespace fastact {
namespace {

using Forward = Tensor(const Tensor&, const Tensor&);
using Backward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&);

const auto& forward_operator() {
  static const auto handle = find_operator<Forward>("prelu");
  return handle;
}
const auto& backward_operator() {
  static const auto handle = find_operator<Backward>("prelu_backward");
  return handle;
}

struct PreluBackward final : torch::autograd::TraceableFunction {
  SavedVariable self;
  SavedVariable weight;

  std::string name() const override { return "fastact::prelu"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    self.reset_data();
    weight.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(2);
    if (grads[0].defined()) {
      auto [dself, dweight] = prelu_backward(grads[0], self.unpack(), weight.unpack());
      result[0] = task_should_compute_output(0) ? dself : Tensor();
      result[1] = task_should_compute_output(1) ? dweight : Tensor();
    }
    return result;
  }

  void compiled_args(CompiledNodeArgs& args) const override {
    args.collect(self, /*is_output=*/false);
    args.collect(weight, /*is_output=*/false);
  }

  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& swap) override {
    swap.before(self);
    swap.before(weight);
    variable_list result = apply(variable_list(grads));
    swap.after(self);
    swap.after(weight);
    return result;
  }
};

bool differentiated_here(const Tensor& self, const Tensor& weight) {
  return is_kernel_dtype(self.scalar_type()) && self.layout() == at::kStrided &&
         !self.is_nested() && !is_dual(self) && !is_dual(weight);
}

Tensor forward_autograd(c10::DispatchKeySet keys, const Tensor& self, const Tensor& weight) {
  check_prelu("prelu", self, weight);
  if (C10_UNLIKELY(!differentiated_here(self, weight))) {
    return at::prelu(self, weight);
  }
  const auto node = make_node<PreluBackward>(self, weight);
  Tensor result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return forward_operator().redispatch(keys & c10::after_autograd_keyset, self, weight);
  }();
  if (node) {
    set_history(result, node);
    node->self = SavedVariable(self, /*is_output=*/false);
    node->weight = SavedVariable(weight, /*is_output=*/false);
    node_is_complete(node);
  }
  return result;
}

std::tuple<Tensor, Tensor> backward_autograd(c10::DispatchKeySet keys, const Tensor& grad,
                                             const Tensor& self, const Tensor& weight) {
  check_prelu_backward(grad, self, weight);
  if (compute_requires_grad(grad, self, weight) || !differentiated_here(self, weight) ||
      is_dual(grad)) {
    return compose_prelu_backward(grad, self, weight);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return backward_operator().redispatch(keys & c10::after_autograd_keyset, grad, self, weight);
}

Tensor forward_meta(const Tensor& self, const Tensor& weight) {
  check_prelu("prelu", self, weight);
  return at::empty_like(self);
}

std::tuple<Tensor, Tensor> backward_meta(const Tensor& grad, const Tensor& self,
                                         const Tensor& weight) {
  check_prelu_backward(grad, self, weight);
  return {at::empty_like(self), at::empty_like(weight)};
}

Tensor forward_composed(const Tensor& self, const Tensor& weight) {
  check_prelu("prelu", self, weight);
  return at::prelu(self, weight);
}

}  // namespace

Tensor prelu(const Tensor& self, const Tensor& weight) {
  return forward_operator().call(self, weight);
}

std::tuple<Tensor, Tensor> prelu_backward(const Tensor& grad, const Tensor& self,
                                          const Tensor& weight) {
  return backward_operator().call(grad, self, weight);
}

void check_prelu(const OperatorName& op, const Tensor& self, const Tensor& weight,
                 const char* name) {
  check_defined(op, "input", self);
  check_defined(op, name, weight);
  if (!has_sizes(self) || !has_sizes(weight)) {
    return;  // at::prelu takes or refuses them
  }
  check_like(op, name, weight, "input", self);
  TORCH_CHECK(weight.dim() <= 1, op, name, ": expected a scalar or a 1-dimensional tensor, got ",
              weight.dim(), " dimensions");
  const c10::SymInt count = weight.sym_numel();
  if (count != 1) {
    TORCH_CHECK(self.dim() > 0, op, "input: expected at least 1 dimension for a ", name, " of ",
                count, " elements, got a 0-dimensional tensor");
    const c10::SymInt channels = self.dim() > 1 ? self.sym_size(1) : c10::SymInt(1);
    TORCH_CHECK(channels == count, op, name, ": expected 1 or ", channels,
                " elements (input's size in dimension 1), got ", count);
  }
}

void check_prelu_backward(const Tensor& grad, const Tensor& self, const Tensor& weight) {
  check_prelu("prelu_backward", self, weight);
  check_gradient("prelu_backward", grad, "self", self);
}

Tensor prelu_weight_like(const Tensor& self, const Tensor& weight) {
  c10::SymDimVector shape(self.dim(), 1);
  if (self.dim() > 1) {
    shape[1] = weight.sym_numel();
  }
  return weight.reshape_symint(shape);
}

std::tuple<Tensor, Tensor> compose_prelu_backward(const Tensor& grad, const Tensor& self,
                                                  const Tensor& weight) {
  check_prelu_backward(grad, self, weight);
  const Tensor broadcast = prelu_weight_like(self, weight);
  auto [dself, dweight] = at::_prelu_kernel_backward(grad, self, broadcast);
  const Tensor reduced = dweight.sum_to_size_symint(broadcast.sym_sizes());
  return {dself, reduced.reshape_symint(weight.sym_sizes())};
}

TORCH_LIBRARY_IMPL(fastact, Autograd, m) {
  m.impl("prelu", TORCH_FN(forward_autograd));
  m.impl("prelu_backward", TORCH_FN(backward_autograd));
}

TORCH_LIBRARY_IMPL(fastact, Meta, m) {
  m.impl("prelu", TORCH_FN(forward_meta));
  m.impl("prelu_backward", TORCH_FN(backward_meta));
}

FASTACT_IMPL_COMPOSITIONS(m) {
  m.impl("prelu", TORCH_FN(forward_composed));
  m.impl("prelu_backward", TORCH_FN(compose_prelu_backward));
}

}  // namespace fastact
