// Autograd of PReLU, its fake kernels and its ATen composition.
#include <ATen/ops/_prelu_kernel_backward.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/prelu.h>

#include "core/activation.h"
#include "core/node.h"
#include "core/registration.h"
#include "ops/prelu/prelu.h"

namespace fastact {
namespace {

struct PreluNode final : OperatorNode<PreluNode> {
  SavedVariable self;
  SavedVariable weight;

  std::string name() const override { return "fastact::prelu"; }

  template <class F>
  void each_saved(const F& f) {
    f(self, /*is_output=*/false);
    f(weight, /*is_output=*/false);
  }
  template <class F>
  void each_attribute(const F&) {}

  void backward(const Tensor& grad, variable_list& gradients) {
    auto [dself, dweight] = prelu_backward_op.call(grad, self.unpack(), weight.unpack());
    gradients[0] = task_should_compute_output(0) ? dself : Tensor();
    gradients[1] = task_should_compute_output(1) ? dweight : Tensor();
  }
};

bool differentiated_here(const Tensor& self, const Tensor& weight) {
  return has_sizes(self) && is_kernel_dtype(self.scalar_type()) && !is_dual(self) &&
         !is_dual(weight);
}

Tensor forward_autograd(c10::DispatchKeySet keys, const Tensor& self, const Tensor& weight) {
  if (C10_UNLIKELY(!differentiated_here(self, weight))) {
    check_prelu("prelu", self, weight);
    return at::prelu(self, weight);
  }
  const auto node = make_node<PreluNode>(self, weight);
  Tensor result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return prelu_op.redispatch(keys & c10::after_autograd_keyset, self, weight);
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
  if (compute_requires_grad(grad, self, weight) || !differentiated_here(self, weight) ||
      is_dual(grad)) {
    return compose_prelu_backward(grad, self, weight);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return prelu_backward_op.redispatch(keys & c10::after_autograd_keyset, grad, self, weight);
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

namespace {

const Registration register_prelu{prelu_op, Autograd<&forward_autograd>{}, Cpu<&prelu_cpu>{},
                                  Fake<&forward_meta>{}, Composed<&forward_composed>{}};
const Registration register_prelu_backward{prelu_backward_op, Autograd<&backward_autograd>{},
                                           Cpu<&prelu_backward_cpu>{}, Fake<&backward_meta>{},
                                           Composed<&compose_prelu_backward>{}};

}  // namespace

}  // namespace fastact
