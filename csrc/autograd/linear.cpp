// linear with an activation: autograd, fake kernel, and the kernel for every backend. The matrix
// product is ATen's; the activation runs in its output.
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include "autograd/node.h"
#include "epilogue.h"
#include "operators.h"

namespace fastact {
namespace {

using OptionalTensor = std::optional<Tensor>;
using Name = std::optional<c10::string_view>;
using Schema = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, Name,
                      at::ArrayRef<double>, const OptionalTensor&);

const auto& linear_operator() {
  static const auto handle = find_operator<Schema>("linear");
  return handle;
}

const Tensor& value_or_undefined(const OptionalTensor& t) {
  static const Tensor undefined;
  return t ? *t : undefined;
}

void check_linear(const Tensor& input, const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK(weight.dim() == 1 || weight.dim() == 2,
              "fastact.linear(): weight: expected 1 or 2 dimensions, got ", weight.dim());
  TORCH_CHECK(input.dim() > 0,
              "fastact.linear(): input: expected at least 1 dimension, got a 0-dimensional tensor");
  const c10::SymInt in_features = weight.sym_size(-1);
  TORCH_CHECK(input.sym_size(-1) == in_features,
              "fastact.linear(): input: expected a last dimension of ", in_features,
              " to match weight of shape ", weight.sym_sizes(), ", got shape ", input.sym_sizes());
  const auto check_like_input = [&](const char* name, const Tensor& t) {
    TORCH_CHECK(t.scalar_type() == input.scalar_type(), "fastact.linear(): ", name,
                ": expected the dtype of input, ", input.scalar_type(), ", got ", t.scalar_type());
    TORCH_CHECK(t.device() == input.device(), "fastact.linear(): ", name,
                ": expected the device of input, ", input.device(), ", got ", t.device());
  };
  check_like_input("weight", weight);
  if (bias.defined()) {
    check_like_input("bias", bias);
    TORCH_CHECK(bias.dim() == 0 || bias.dim() > 1 || weight.dim() == 1 || bias.sym_size(0) == 1 ||
                    bias.sym_size(0) == weight.sym_size(0),
                "fastact.linear(): bias: expected shape [", weight.sym_size(0),
                "] to match weight of shape ", weight.sym_sizes(), ", got shape ",
                bias.sym_sizes());
  }
}

struct LinearBackward final : torch::autograd::TraceableFunction {
  std::string activation;  // one whose backward reads the output
  std::vector<double> parameters;
  SavedVariable input;   // where weight needs a gradient
  SavedVariable weight;  // where input needs one
  SavedVariable output;

  std::string name() const override { return "fastact::linear"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    input.reset_data();
    weight.reset_data();
    output.reset_data();
  }

  // dz = grad * act'(output); dinput = dz @ weight, dweight = dz.T @ input, dbias = sum of dz.
  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(3);
    if (!grads[0].defined()) {
      return result;
    }
    const Epilogue epilogue("linear", activation, parameters, std::nullopt);
    const Tensor dz = epilogue.backward(grads[0], output.unpack(getptr())).z;
    const auto as_matrix = [](const Tensor& t) {
      if (t.dim() == 2) {
        return t;
      }
      c10::SymInt rows = 1;  // not flatten(): under vmap it has no batching rule
      for (const c10::SymInt& size : t.sym_sizes().slice(0, t.dim() - 1)) {
        rows *= size;
      }
      return t.reshape_symint({rows, t.sym_size(-1)});
    };
    if (task_should_compute_output(0)) {
      result[0] = at::matmul(dz, weight.unpack());
    }
    if (task_should_compute_output(1)) {
      result[1] = at::mm(as_matrix(dz).t(), as_matrix(input.unpack()));
    }
    if (task_should_compute_output(2)) {
      result[2] = as_matrix(dz).sum(0);
    }
    return result;
  }

  void compiled_args(CompiledNodeArgs& args) const override {
    args.collect(activation);
    args.collect(parameters);
    args.collect(input, /*is_output=*/false);
    args.collect(weight, /*is_output=*/false);
    args.collect(output, /*is_output=*/true);
  }

  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& swap) override {
    const auto each = [&](const auto& f) {
      for (SavedVariable* variable : {&input, &weight, &output}) {
        f(*variable);
      }
    };
    each([&](SavedVariable& variable) { swap.before(variable); });
    variable_list result = apply(variable_list(grads));
    each([&](SavedVariable& variable) { swap.after(variable); });
    return result;
  }
};

Tensor linear_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& weight,
                       const OptionalTensor& bias_, Name activation,
                       at::ArrayRef<double> parameters, const OptionalTensor& slope_) {
  const Tensor& bias = value_or_undefined(bias_);
  const Tensor& slope = value_or_undefined(slope_);
  const bool needs_grad = compute_requires_grad(input, weight, bias, slope);
  const bool composed =
      is_dual(input) || is_dual(weight) || is_dual(bias) || is_dual(slope) ||
      input.layout() != at::kStrided || weight.layout() != at::kStrided || input.is_nested() ||
      (needs_grad && bias.defined() &&
       (bias.dim() != 1 || bias.sym_size(0) != weight.sym_size(0))) ||
      (needs_grad && (!is_kernel_dtype(input.scalar_type()) || weight.dim() != 2));
  if (C10_UNLIKELY(composed)) {
    check_linear(input, weight, bias);
    const Epilogue epilogue("linear", activation, parameters, slope_);
    return epilogue.compose(at::linear(input, weight, bias_));
  }
  if (!needs_grad) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return linear_operator().redispatch(keys & c10::after_autograd_keyset, input, weight, bias_,
                                        activation, parameters, slope_);
  }
  const Epilogue epilogue("linear", activation, parameters, slope_);
  if (epilogue.is_identity() || !epilogue.saves_output()) {
    // A value before the activation that is saved must have a node of its own, for higher orders to
    // find their way through it.
    return epilogue.apply(at::linear(input, weight, bias_));
  }
  const auto node = make_node<LinearBackward>(input, weight, bias);
  Tensor result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return linear_operator().redispatch(keys & c10::after_autograd_keyset, input, weight, bias_,
                                        activation, parameters, slope_);
  }();
  set_history(result, node);
  node->activation = std::string(*activation);
  node->parameters = parameters.vec();
  node->output = SavedVariable(result, /*is_output=*/true);
  if (weight.requires_grad()) {
    node->input = SavedVariable(input, /*is_output=*/false);
  }
  if (input.requires_grad()) {
    node->weight = SavedVariable(weight, /*is_output=*/false);
  }
  node_is_complete(node);
  return result;
}

Tensor linear_composed(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       Name activation, at::ArrayRef<double> parameters,
                       const OptionalTensor& slope) {
  const Epilogue epilogue("linear", activation, parameters, slope);
  check_linear(input, weight, value_or_undefined(bias));
  return epilogue.apply_in_place(at::linear(input, weight, bias).contiguous());
}

Tensor linear_meta(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                   Name activation, at::ArrayRef<double> parameters, const OptionalTensor& slope) {
  const Epilogue epilogue("linear", activation, parameters, slope);
  check_linear(input, weight, value_or_undefined(bias));
  c10::SymDimVector sizes(input.sym_sizes().begin(), input.sym_sizes().end());
  sizes.pop_back();
  if (weight.dim() == 2) {
    sizes.push_back(weight.sym_size(0));
  }
  return epilogue.apply_in_place(at::empty_symint(sizes, input.options()));
}

}  // namespace

TORCH_LIBRARY_IMPL(fastact, Autograd, m) { m.impl("linear", TORCH_FN(linear_autograd)); }

TORCH_LIBRARY_IMPL(fastact, Meta, m) { m.impl("linear", TORCH_FN(linear_meta)); }

TORCH_LIBRARY_IMPL(fastact, CompositeExplicitAutograd, m) {
  m.impl("linear", TORCH_FN(linear_composed));
}

}  // namespace fastact
