// Autograd of the gated units, their fake kernels, and their ATen composition.
#include <ATen/WrapDimUtils.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/glu.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/threshold_backward.h>

#include "core/activation.h"
#include "core/checks.h"
#include "core/node.h"
#include "core/registration.h"
#include "ops/gated/gated.h"
#include "ops/unary/compositions.h"

namespace fastact {
constexpr GatedUnit gated_units[kNumGates] = {
    GatedUnit{kSigmoidGate, /*gate_first=*/false, [](const Tensor& x) { return at::sigmoid(x); }},
    GatedUnit{kSiluGate, /*gate_first=*/true, [](const Tensor& x) { return at::silu(x); }},
    GatedUnit{kGeluGate, /*gate_first=*/true, [](const Tensor& x) { return at::gelu(x); }},
    GatedUnit{kReluGate, /*gate_first=*/true, [](const Tensor& x) { return at::relu(x); }},
};

namespace {

struct GatedNode final : OperatorNode<GatedNode> {
  const GatedUnit* unit = nullptr;
  int64_t dim = 0;
  SavedVariable self;

  std::string name() const override { return std::string("fastact::") + unit->name(); }

  template <class F>
  void each_saved(const F& f) {
    f(self, /*is_output=*/false);
  }
  template <class F>
  void each_attribute(const F& f) {
    int64_t index = unit->gate;
    f(index);
    f(dim);
  }

  void backward(const Tensor& grad, variable_list& gradients) {
    if (task_should_compute_output(0)) {
      gradients[0] = unit->ops().backward.call(grad, self.unpack(), dim);
    }
  }
};

bool differentiated_here(const Tensor& self) {
  return has_sizes(self) && is_kernel_dtype(self.scalar_type()) && !is_dual(self);
}

Tensor forward_autograd(c10::DispatchKeySet keys, const GatedUnit& unit, const Tensor& self,
                        int64_t dim) {
  if (C10_UNLIKELY(!differentiated_here(self))) {
    return compose_gated(unit, self, check_gated(unit, self, dim));
  }
  const auto node = make_node<GatedNode>(self);
  Tensor result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return unit.ops().forward.redispatch(keys & c10::after_autograd_keyset, self, dim);
  }();
  if (node) {
    node->unit = &unit;
    node->dim = dim;
    set_history(result, node);
    node->self = SavedVariable(self, /*is_output=*/false);
    node_is_complete(node);
  }
  return result;
}

Tensor backward_autograd(c10::DispatchKeySet keys, const GatedUnit& unit, const Tensor& grad,
                         const Tensor& self, int64_t dim) {
  if (compute_requires_grad(grad, self) || !differentiated_here(self) || is_dual(grad)) {
    return compose_gated_backward(unit, grad, self, check_gated_backward(unit, grad, self, dim));
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return unit.ops().backward.redispatch(keys & c10::after_autograd_keyset, grad, self, dim);
}

Tensor forward_meta(const GatedUnit& unit, const Tensor& self, int64_t dim) {
  dim = check_gated(unit, self, dim);
  return at::empty_like(self.narrow_symint(dim, 0, self.sym_size(dim) / 2));
}

Tensor backward_meta(const GatedUnit& unit, const Tensor& grad, const Tensor& self, int64_t dim) {
  check_gated_backward(unit, grad, self, dim);
  return at::empty_like(self);
}

Tensor forward_composed(const GatedUnit& unit, const Tensor& self, int64_t dim) {
  return compose_gated(unit, self, check_gated(unit, self, dim));
}

Tensor backward_composed(const GatedUnit& unit, const Tensor& grad, const Tensor& self,
                         int64_t dim) {
  return compose_gated_backward(unit, grad, self, check_gated_backward(unit, grad, self, dim));
}

// grad * act'(x), differentiable.
Tensor gate_backward(Gate gate, const Tensor& grad, const Tensor& x) {
  switch (gate) {
    case kSigmoidGate:
      return at::sigmoid_backward(grad, at::sigmoid(x));
    case kSiluGate:
      return Composition<Silu>::backward(grad, x, nullptr);
    case kGeluGate:
      return at::gelu_backward(grad, x);
    default:
      return at::threshold_backward(grad, x, 0);
  }
}

int64_t check_halves(const OperatorName& op, const Tensor& self, int64_t dim) {
  check_defined(op, "input", self);
  TORCH_CHECK(self.dim() > 0, op,
              "input: expected at least 1 dimension, got a 0-dimensional tensor");
  dim = at::maybe_wrap_dim(dim, self.dim());
  if (has_sizes(self)) {
    const c10::SymInt size = self.sym_size(dim);
    TORCH_CHECK(size % 2 == 0, op, "input: expected an even size in dimension ", dim,
                ", which is halved, got ", size);
  }
  return dim;
}

}  // namespace

int64_t check_gated(const GatedUnit& unit, const Tensor& self, int64_t dim) {
  return check_halves(unit.name(), self, dim);
}

int64_t check_gated_backward(const GatedUnit& unit, const Tensor& grad, const Tensor& self,
                             int64_t dim) {
  const OperatorName op(unit.name(), "_backward");
  dim = check_halves(op, self, dim);
  check_defined(op, "grad", grad);
  if (has_sizes(grad) && has_sizes(self) && !is_stand_in(grad)) {
    c10::SymDimVector sizes(self.sym_sizes().begin(), self.sym_sizes().end());
    sizes[dim] = sizes[dim] / 2;
    check_sizes(op, "grad", grad, "the output", sizes);
    check_like(op, "grad", grad, "self", self);
  }
  return dim;
}

Tensor compose_gated(const GatedUnit& unit, const Tensor& self, int64_t dim) {
  if (unit.gate == kSigmoidGate && !is_kernel_dtype(self.scalar_type())) {
    return at::glu(self, dim);  // which refuses integers
  }
  const c10::SymInt half = self.sym_size(dim) / 2;
  const Tensor first = self.narrow_symint(dim, 0, half);
  const Tensor second = self.narrow_symint(dim, half, half);
  return unit.gate_first ? at::mul(unit.activation(first), second)
                         : at::mul(first, unit.activation(second));
}

Tensor compose_gated_backward(const GatedUnit& unit, const Tensor& grad, const Tensor& self,
                              int64_t dim) {
  const c10::SymInt half = self.sym_size(dim) / 2;
  const Tensor first = self.narrow_symint(dim, 0, half);
  const Tensor second = self.narrow_symint(dim, half, half);
  const Tensor& gate = unit.gate_first ? first : second;
  const Tensor& value = unit.gate_first ? second : first;
  const Tensor dgate = gate_backward(unit.gate, at::mul(grad, value), gate);
  const Tensor dvalue = at::mul(grad, unit.activation(gate));
  return unit.gate_first ? at::cat({dgate, dvalue}, dim) : at::cat({dvalue, dgate}, dim);
}

namespace {

// The kernels of one unit.
template <int kGate>
struct Kernels {
  static Tensor autograd(c10::DispatchKeySet keys, const Tensor& self, int64_t dim) {
    return forward_autograd(keys, gated_units[kGate], self, dim);
  }
  static Tensor cpu(const Tensor& self, int64_t dim) {
    return gated_cpu(gated_units[kGate], self, dim);
  }
  static Tensor meta(const Tensor& self, int64_t dim) {
    return forward_meta(gated_units[kGate], self, dim);
  }
  static Tensor composed(const Tensor& self, int64_t dim) {
    return forward_composed(gated_units[kGate], self, dim);
  }

  static Tensor backward_autograd(c10::DispatchKeySet keys, const Tensor& grad, const Tensor& self,
                                  int64_t dim) {
    return fastact::backward_autograd(keys, gated_units[kGate], grad, self, dim);
  }
  static Tensor backward_cpu(const Tensor& grad, const Tensor& self, int64_t dim) {
    return gated_backward_cpu(gated_units[kGate], grad, self, dim);
  }
  static Tensor backward_meta(const Tensor& grad, const Tensor& self, int64_t dim) {
    return fastact::backward_meta(gated_units[kGate], grad, self, dim);
  }
  static Tensor backward_composed(const Tensor& grad, const Tensor& self, int64_t dim) {
    return fastact::backward_composed(gated_units[kGate], grad, self, dim);
  }
};

template <int kGate>
void register_unit() {
  using K = Kernels<kGate>;
  Registration(gated_ops[kGate].forward, Autograd<&K::autograd>{}, Cpu<&K::cpu>{}, Fake<&K::meta>{},
               Composed<&K::composed>{});
  Registration(gated_ops[kGate].backward, Autograd<&K::backward_autograd>{},
               Cpu<&K::backward_cpu>{}, Fake<&K::backward_meta>{},
               Composed<&K::backward_composed>{});
}

template <int... kGates>
bool register_units(std::integer_sequence<int, kGates...>) {
  (register_unit<kGates>(), ...);
  return true;
}

const bool registered = register_units(std::make_integer_sequence<int, kNumGates>());

}  // namespace

}  // namespace fastact
