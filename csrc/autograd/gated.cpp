// Autograd of the gated units, their fake kernels, and their ATen composition.
#include "gated.h"

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
#include <torch/library.h>

#include <array>

#include "activation.h"
#include "autograd/compositions.h"
#include "autograd/node.h"
#include "core/checks.h"
#include "core/registration.h"
#include "operators.h"

namespace fastact {
namespace {

constexpr std::array kUnits = {
    GatedUnit{kGatedUnitNames[kSigmoidGate], kSigmoidGate, /*gate_first=*/false,
              [](const Tensor& x) { return at::sigmoid(x); }},
    GatedUnit{kGatedUnitNames[kSiluGate], kSiluGate, /*gate_first=*/true,
              [](const Tensor& x) { return at::silu(x); }},
    GatedUnit{kGatedUnitNames[kGeluGate], kGeluGate, /*gate_first=*/true,
              [](const Tensor& x) { return at::gelu(x); }},
    GatedUnit{kGatedUnitNames[kReluGate], kReluGate, /*gate_first=*/true,
              [](const Tensor& x) { return at::relu(x); }},
};

using ForwardSchema = Tensor(const Tensor&, int64_t);
using BackwardSchema = Tensor(const Tensor&, const Tensor&, int64_t);

struct Handles {
  c10::TypedOperatorHandle<ForwardSchema> forward;
  c10::TypedOperatorHandle<BackwardSchema> backward;
};

const Handles& handles(const GatedUnit& unit) {
  static const auto all = [] {
    std::vector<Handles> handles;
    for (const GatedUnit& u : kUnits) {
      const std::string name = u.name;
      handles.push_back(
          {find_operator<ForwardSchema>(name), find_operator<BackwardSchema>(name + "_backward")});
    }
    return handles;
  }();
  return all[&unit - kUnits.data()];
}

struct GatedBackwardNode final : torch::autograd::TraceableFunction {
  const GatedUnit* unit = nullptr;
  int64_t dim = 0;
  SavedVariable self;

  std::string name() const override { return std::string("fastact::") + unit->name; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    self.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(1);
    if (grads[0].defined() && task_should_compute_output(0)) {
      result[0] = handles(*unit).backward.call(grads[0], self.unpack(), dim);
    }
    return result;
  }

  void compiled_args(CompiledNodeArgs& args) const override {
    args.collect(static_cast<int64_t>(unit->gate));
    args.collect(dim);
    args.collect(self, /*is_output=*/false);
  }

  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& swap) override {
    swap.before(self);
    variable_list result = apply(variable_list(grads));
    swap.after(self);
    return result;
  }
};

bool differentiated_here(const Tensor& self) {
  return is_kernel_dtype(self.scalar_type()) && self.layout() == at::kStrided &&
         !self.is_nested() && !is_dual(self);
}

Tensor forward_autograd(c10::DispatchKeySet keys, const GatedUnit& unit, const Tensor& self,
                        int64_t dim) {
  if (C10_UNLIKELY(!differentiated_here(self))) {
    return compose_gated(unit, self, check_gated(unit, self, dim));
  }
  const auto node = make_node<GatedBackwardNode>(self);
  Tensor result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return handles(unit).forward.redispatch(keys & c10::after_autograd_keyset, self, dim);
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
  dim = check_gated_backward(unit, grad, self, dim);
  if (compute_requires_grad(grad, self) || !differentiated_here(self) || is_dual(grad)) {
    return compose_gated_backward(unit, grad, self, dim);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return handles(unit).backward.redispatch(keys & c10::after_autograd_keyset, grad, self, dim);
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

}  // namespace

at::ArrayRef<GatedUnit> gated_units() { return kUnits; }

namespace {

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
  return check_halves(unit.name, self, dim);
}

int64_t check_gated_backward(const GatedUnit& unit, const Tensor& grad, const Tensor& self,
                             int64_t dim) {
  const OperatorName op(unit.name, "_backward");
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

void implement_gated(torch::Library& m, GatedForward forward, GatedBackward backward) {
  for (const GatedUnit& unit : kUnits) {
    const std::string name = unit.name;
    m.impl(name.c_str(),
           [&unit, forward](const Tensor& self, int64_t dim) { return forward(unit, self, dim); });
    m.impl((name + "_backward").c_str(),
           [&unit, backward](const Tensor& grad, const Tensor& self, int64_t dim) {
             return backward(unit, grad, self, dim);
           });
  }
}

TORCH_LIBRARY_IMPL(fastact, Autograd, m) {
  for (const GatedUnit& unit : kUnits) {
    const std::string name = unit.name;
    m.impl(name.c_str(), [&unit](c10::DispatchKeySet keys, const Tensor& self, int64_t dim) {
      return forward_autograd(keys, unit, self, dim);
    });
    m.impl((name + "_backward").c_str(),
           [&unit](c10::DispatchKeySet keys, const Tensor& grad, const Tensor& self, int64_t dim) {
             return backward_autograd(keys, unit, grad, self, dim);
           });
  }
}

TORCH_LIBRARY_IMPL(fastact, Meta, m) { implement_gated(m, forward_meta, backward_meta); }

FASTACT_IMPL_COMPOSITIONS(m) { implement_gated(m, forward_composed, backward_composed); }

}  // namespace fastact
