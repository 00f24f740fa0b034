// linear with an activation: autograd, fake kernels, and the kernels for every backend, where the
// matrix product is ATen's and the activation runs in its output.
#include "linear.h"

#include <ATen/ops/add.h>
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

template <class Schema>
const auto& linear_operator(const char* name) {
  static const auto handle = find_operator<Schema>(name);
  return handle;
}

const Tensor& value_or_undefined(const OptionalTensor& t) {
  static const Tensor undefined;
  return t ? *t : undefined;
}

OptionalTensor none_if_undefined(Tensor t) {
  return t.defined() ? OptionalTensor(std::move(t)) : std::nullopt;
}

Tensor with_residual(const Tensor& product, const Tensor& residual) {
  return residual.defined() ? at::add(product, residual) : product;
}

struct LinearBackward final : torch::autograd::TraceableFunction {
  std::optional<std::string> activation;
  std::vector<double> parameters;
  SavedVariable saved;   // the output or the value before the activation
  SavedVariable input;   // where weight needs a gradient
  SavedVariable weight;  // where input needs one
  // Where `saved` is the value before the activation, so that higher orders can form it again.
  SavedVariable bias;
  SavedVariable slope;

  std::string name() const override { return "fastact::linear"; }

  template <class F>
  void for_each_variable(const F& f) {
    for (SavedVariable* variable : {&saved, &input, &weight, &bias, &slope}) {
      f(*variable);
    }
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for_each_variable([](SavedVariable& variable) { variable.reset_data(); });
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(std::tuple_size_v<LinearGradients>);
    if (!grads[0].defined()) {
      return result;
    }
    LinearMask mask;
    for (std::size_t i = 0; i < mask.size(); ++i) {
      mask[i] = task_should_compute_output(i);
    }
    if (!activation && mask[4]) {
      result[4] = grads[0];  // which an operator may not return
      mask[4] = false;
    }
    static const auto handle = find_operator<LinearBackwardSchema>("linear_backward");
    const auto gradients = handle.call(
        grads[0], none_if_undefined(saved.unpack(getptr())), none_if_undefined(input.unpack()),
        none_if_undefined(weight.unpack()), none_if_undefined(bias.unpack()),
        none_if_undefined(slope.unpack()), activation, parameters, mask);
    const auto take = [&](int i, const Tensor& gradient) {
      if (mask[i]) {
        result[i] = gradient;
      }
    };
    take(0, std::get<0>(gradients));
    take(1, std::get<1>(gradients));
    take(2, std::get<2>(gradients));
    take(3, std::get<3>(gradients));
    take(4, std::get<4>(gradients));
    return result;
  }

  void compiled_args(CompiledNodeArgs& args) const override {
    args.collect(activation);
    args.collect(parameters);
    args.collect(saved, /*is_output=*/saved_is_output);
    args.collect(input, /*is_output=*/false);
    args.collect(weight, /*is_output=*/false);
    args.collect(bias, /*is_output=*/false);
    args.collect(slope, /*is_output=*/false);
  }

  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& swap) override {
    for_each_variable([&](SavedVariable& variable) { swap.before(variable); });
    variable_list result = apply(variable_list(grads));
    for_each_variable([&](SavedVariable& variable) { swap.after(variable); });
    return result;
  }

  bool saved_is_output = false;
};

Tensor linear_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& weight,
                       const OptionalTensor& bias_, ActivationName activation,
                       at::ArrayRef<double> parameters, const OptionalTensor& slope_,
                       const OptionalTensor& residual_) {
  const Tensor& bias = value_or_undefined(bias_);
  const Tensor& slope = value_or_undefined(slope_);
  const Tensor& residual = value_or_undefined(residual_);
  const bool needs_grad = compute_requires_grad(input, weight, bias, slope, residual);
  const bool composed =
      is_dual(input) || is_dual(weight) || is_dual(bias) || is_dual(slope) || is_dual(residual) ||
      input.layout() != at::kStrided || weight.layout() != at::kStrided || input.is_nested() ||
      (needs_grad && bias.defined() &&
       (bias.dim() != 1 || bias.sym_size(0) != weight.sym_size(0))) ||
      (needs_grad && (!is_kernel_dtype(input.scalar_type()) || weight.dim() != 2));
  if (C10_UNLIKELY(composed)) {
    check_linear(input, weight, bias_);
    const Epilogue epilogue("linear", activation, parameters, slope_);
    return epilogue.compose(with_residual(at::linear(input, weight, bias_), residual));
  }
  if (!needs_grad) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return linear_operator<LinearSchema>("linear").redispatch(keys & c10::after_autograd_keyset,
                                                              input, weight, bias_, activation,
                                                              parameters, slope_, residual_);
  }
  const Epilogue epilogue("linear", activation, parameters, slope_);
  if (residual.defined() && !fits_output(residual, input, weight)) {
    return epilogue.apply(with_residual(
        linear_autograd(keys, input, weight, bias_, std::nullopt, {}, {}, {}), residual));
  }
  const bool saves_before = !epilogue.is_identity() && !epilogue.saves_output();
  if (saves_before && (residual.defined() || !(weight.requires_grad() && input.requires_grad()))) {
    // For higher orders one node would have to keep the residual, and the input and the weight, of
    // which PyTorch keeps only one here.
    return epilogue.apply(
        linear_autograd(keys, input, weight, bias_, std::nullopt, {}, {}, residual_));
  }
  const auto node = make_node<LinearBackward>(input, weight, bias, slope, residual);
  Tensor before;
  Tensor result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    if (!saves_before) {
      return linear_operator<LinearSchema>("linear").redispatch(keys & c10::after_autograd_keyset,
                                                                input, weight, bias_, activation,
                                                                parameters, slope_, residual_);
    }
    static const auto handle = find_operator<LinearTrainingSchema>("linear_training");
    auto [output, z] = handle.redispatch(keys & c10::after_autograd_keyset, input, weight, bias_,
                                         activation, parameters, slope_);
    before = z;
    return output;
  }();
  set_history(result, node);
  if (activation) {
    node->activation = std::string(*activation);
  }
  node->parameters = parameters.vec();
  node->saved_is_output = !epilogue.is_identity() && !saves_before;
  if (saves_before) {
    node->saved = SavedVariable(before, /*is_output=*/false);
    node->bias = SavedVariable(bias, /*is_output=*/false);
    node->slope = SavedVariable(slope, /*is_output=*/false);
  } else if (node->saved_is_output) {
    node->saved = SavedVariable(result, /*is_output=*/true);
  }
  if (weight.requires_grad()) {
    node->input = SavedVariable(input, /*is_output=*/false);
  }
  if (input.requires_grad()) {
    node->weight = SavedVariable(weight, /*is_output=*/false);
  }
  node_is_complete(node);
  return result;
}

// dz = grad * act'; dinput = dz @ weight, dweight = dz.T @ input, dbias = sum of dz. Of
// differentiable operators, so that every higher order follows.
LinearGradients linear_gradients(const Epilogue& epilogue, const Tensor& grad, const Tensor& saved,
                                 const OptionalTensor& input, const OptionalTensor& weight,
                                 const LinearMask& mask) {
  const auto [dz, dslope] = epilogue.backward(grad, saved);
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
  const auto none = [&] { return at::empty({0}, grad.options()); };
  return {mask[0] ? at::matmul(dz, *weight) : none(),
          mask[1] ? at::mm(as_matrix(dz).t(), as_matrix(*input)) : none(),
          mask[2] ? as_matrix(dz).sum(0) : none(), mask[3] ? dslope : none(),
          mask[4] ? residual_gradient(epilogue, dz) : none()};
}

LinearGradients linear_backward_autograd(c10::DispatchKeySet keys, const Tensor& grad,
                                         const OptionalTensor& saved, const OptionalTensor& input,
                                         const OptionalTensor& weight, const OptionalTensor& bias,
                                         const OptionalTensor& slope, ActivationName activation,
                                         at::ArrayRef<double> parameters, LinearMask mask) {
  const auto each = {&value_or_undefined(saved),  &value_or_undefined(input),
                     &value_or_undefined(weight), &value_or_undefined(bias),
                     &value_or_undefined(slope),  &grad};
  const bool composed = std::any_of(each.begin(), each.end(), [](const Tensor* t) {
    return t->defined() && (compute_requires_grad(*t) || is_dual(*t));
  });
  if (!composed) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return linear_operator<LinearBackwardSchema>("linear_backward")
        .redispatch(keys & c10::after_autograd_keyset, grad, saved, input, weight, bias, slope,
                    activation, parameters, mask);
  }
  const Epilogue epilogue("linear", activation, parameters, slope);
  // The saved value before the activation does not know where it came from.
  const bool form_again = !epilogue.is_identity() && !epilogue.saves_output();
  return linear_gradients(
      epilogue, grad, form_again ? at::linear(*input, *weight, bias) : value_or_undefined(saved),
      input, weight, mask);
}

// linear's own kernel runs it below autograd; here come the outer levels of functorch's transforms.
std::tuple<Tensor, Tensor> linear_training_autograd(
    c10::DispatchKeySet keys, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
    ActivationName activation, at::ArrayRef<double> parameters, const OptionalTensor& slope) {
  const auto each = {&input, &weight, &value_or_undefined(bias), &value_or_undefined(slope)};
  const auto dual = [](const Tensor* t) { return is_dual(*t); };
  const auto differentiated = [](const Tensor* t) { return compute_requires_grad(*t); };
  const bool is_forward_mode = std::any_of(each.begin(), each.end(), dual);
  if (is_forward_mode || std::any_of(each.begin(), each.end(), differentiated)) {
    const Epilogue epilogue("linear", activation, parameters, slope);
    const Tensor z = linear_operator<LinearSchema>("linear").call(input, weight, bias, std::nullopt,
                                                                  {}, std::nullopt, std::nullopt);
    return {is_forward_mode ? epilogue.compose(z) : epilogue.apply(z), z};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  static const auto handle = find_operator<LinearTrainingSchema>("linear_training");
  return handle.redispatch(keys & c10::after_autograd_keyset, input, weight, bias, activation,
                           parameters, slope);
}

// The packed weight belongs to a frozen model; a gradient is that of the plain one.
Tensor linear_packed_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& packed,
                              const Tensor& weight, const OptionalTensor& bias,
                              ActivationName activation, at::ArrayRef<double> parameters,
                              const OptionalTensor& slope, const OptionalTensor& residual) {
  const Tensor& b = value_or_undefined(bias);
  const Tensor& s = value_or_undefined(slope);
  const Tensor& r = value_or_undefined(residual);
  if (compute_requires_grad(input, weight, b, s, r) || is_dual(input) || is_dual(weight) ||
      is_dual(b) || is_dual(s) || is_dual(r)) {
    return linear_operator<LinearSchema>("linear").call(input, weight, bias, activation, parameters,
                                                        slope, residual);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  static const auto handle = find_operator<LinearPackedSchema>("linear_packed");
  return handle.redispatch(keys & c10::after_autograd_keyset, input, packed, weight, bias,
                           activation, parameters, slope, residual);
}

Tensor linear_meta(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                   ActivationName activation, at::ArrayRef<double> parameters,
                   const OptionalTensor& slope, const OptionalTensor& residual) {
  const Epilogue epilogue("linear", activation, parameters, slope);
  check_linear(input, weight, bias);
  c10::SymDimVector sizes(input.sym_sizes().begin(), input.sym_sizes().end());
  sizes.pop_back();
  if (weight.dim() == 2) {
    sizes.push_back(weight.sym_size(0));
  }
  return epilogue.apply_in_place(
      with_residual(at::empty_symint(sizes, input.options()), value_or_undefined(residual)));
}

std::tuple<Tensor, Tensor> linear_training_meta(const Tensor& input, const Tensor& weight,
                                                const OptionalTensor& bias,
                                                ActivationName activation,
                                                at::ArrayRef<double> parameters,
                                                const OptionalTensor& slope) {
  const Tensor output =
      linear_meta(input, weight, bias, activation, parameters, slope, std::nullopt);
  return {output, at::empty_symint(output.sym_sizes(), output.options())};
}

// Checks no shapes: compiled autograd calls it with a stand-in for grad.
LinearGradients linear_backward_meta(const Tensor& grad, const OptionalTensor& saved,
                                     const OptionalTensor& input, const OptionalTensor& weight,
                                     const OptionalTensor&, const OptionalTensor& slope,
                                     ActivationName, at::ArrayRef<double>, LinearMask mask) {
  const auto make = [&](bool wanted, c10::SymIntArrayRef sizes) {
    return wanted ? at::empty_symint(sizes, grad.options()) : at::empty({0}, grad.options());
  };
  const Tensor& dz = is_defined(saved) ? *saved : grad;
  c10::SymDimVector input_sizes(dz.sym_sizes().begin(), dz.sym_sizes().end());
  c10::SymDimVector weight_sizes{dz.sym_size(-1), 0};
  if (mask[0]) {
    input_sizes.back() = weight->sym_size(1);
  }
  if (mask[1]) {
    weight_sizes[1] = input->sym_size(-1);
  }
  return {make(mask[0], input_sizes), make(mask[1], weight_sizes), make(mask[2], {dz.sym_size(-1)}),
          make(mask[3], mask[3] ? slope->sym_sizes() : dz.sym_sizes()),
          make(mask[4], dz.sym_sizes())};
}

Tensor compose_pack_linear(const Tensor& weight) {
  return at::empty({0}, weight.options().dtype(at::kByte));
}

Tensor linear_packed_meta(const Tensor& input, const Tensor&, const Tensor& weight,
                          const OptionalTensor& bias, ActivationName activation,
                          at::ArrayRef<double> parameters, const OptionalTensor& slope,
                          const OptionalTensor& residual) {
  return linear_meta(input, weight, bias, activation, parameters, slope, residual);
}

Tensor compose_linear_packed(const Tensor& input, const Tensor&, const Tensor& weight,
                             const OptionalTensor& bias, ActivationName activation,
                             at::ArrayRef<double> parameters, const OptionalTensor& slope,
                             const OptionalTensor& residual) {
  return compose_linear(input, weight, bias, activation, parameters, slope, residual);
}

}  // namespace

void check_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias_) {
  const Tensor& bias = value_or_undefined(bias_);
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

Tensor compose_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                      ActivationName activation, at::ArrayRef<double> parameters,
                      const OptionalTensor& slope, const OptionalTensor& residual) {
  const Epilogue epilogue("linear", activation, parameters, slope);
  check_linear(input, weight, bias);
  return epilogue.apply_in_place(
      with_residual(at::linear(input, weight, bias).contiguous(), value_or_undefined(residual)));
}

Tensor residual_gradient(const Epilogue& epilogue, const Tensor& dz) {
  return epilogue.is_identity() ? dz.clone() : dz;
}

bool fits_output(const Tensor& residual, const Tensor& input, const Tensor& weight) {
  const int64_t dim = input.dim();
  if (residual.scalar_type() != input.scalar_type() || residual.dim() != dim || weight.dim() != 2 ||
      residual.layout() != at::kStrided || residual.sym_size(-1) != weight.sym_size(0)) {
    return false;
  }
  for (int64_t i = 0; i < dim - 1; ++i) {
    if (residual.sym_size(i) != input.sym_size(i)) {
      return false;
    }
  }
  return true;
}

std::tuple<Tensor, Tensor> compose_linear_training(const Tensor& input, const Tensor& weight,
                                                   const OptionalTensor& bias,
                                                   ActivationName activation,
                                                   at::ArrayRef<double> parameters,
                                                   const OptionalTensor& slope) {
  const Epilogue epilogue("linear", activation, parameters, slope);
  check_linear(input, weight, bias);
  const Tensor z = at::linear(input, weight, bias).contiguous();
  return {epilogue.is_identity() ? z.clone() : epilogue.apply(z), z};
}

LinearGradients compose_linear_backward(const Tensor& grad, const OptionalTensor& saved,
                                        const OptionalTensor& input, const OptionalTensor& weight,
                                        const OptionalTensor&, const OptionalTensor& slope,
                                        ActivationName activation, at::ArrayRef<double> parameters,
                                        LinearMask mask) {
  const Epilogue epilogue("linear", activation, parameters, slope);
  return linear_gradients(epilogue, grad, value_or_undefined(saved), input, weight, mask);
}

TORCH_LIBRARY_IMPL(fastact, Autograd, m) {
  m.impl("linear", TORCH_FN(linear_autograd));
  m.impl("linear_training", TORCH_FN(linear_training_autograd));
  m.impl("linear_backward", TORCH_FN(linear_backward_autograd));
  m.impl("linear_packed", TORCH_FN(linear_packed_autograd));
}

TORCH_LIBRARY_IMPL(fastact, Meta, m) {
  m.impl("linear", TORCH_FN(linear_meta));
  m.impl("linear_training", TORCH_FN(linear_training_meta));
  m.impl("linear_backward", TORCH_FN(linear_backward_meta));
  m.impl("linear_packed", TORCH_FN(linear_packed_meta));
}

TORCH_LIBRARY_IMPL(fastact, CompositeExplicitAutograd, m) {
  m.impl("pack_linear", TORCH_FN(compose_pack_linear));
  m.impl("linear", TORCH_FN(compose_linear));
  m.impl("linear_training", TORCH_FN(compose_linear_training));
  m.impl("linear_backward", TORCH_FN(compose_linear_backward));
  m.impl("linear_packed", TORCH_FN(compose_linear_packed));
}

}  // namespace fastact
