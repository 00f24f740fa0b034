// linear with an activation: autograd, fake kernels, autocast and the ATen compositions.
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>

#include "core/fused_node.h"
#include "core/registration.h"
#include "ops/linear/linear.h"
#include "ops/prelu/prelu.h"

namespace fastact {
namespace {

// Keeps the input where the weight needs a gradient, and the weight where the input needs one.
struct LinearNode final : OperatorNode<LinearNode>, FusedState {
  std::string name() const override { return "fastact::linear"; }

  void backward(const Tensor& grad, variable_list& result) {
    gradients(*this, grad, result, [&](const FusedMask& mask) {
      return linear_backward_op.call(
          grad, none_if_undefined(saved.unpack(getptr())), none_if_undefined(input.unpack()),
          none_if_undefined(weight.unpack()), none_if_undefined(bias.unpack()),
          none_if_undefined(slope.unpack()), activation, parameters, mask, save_output);
    });
  }
};

Tensor linear_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& weight,
                       const OptionalTensor& bias_, ActivationName activation,
                       at::ArrayRef<double> parameters, const OptionalTensor& slope_,
                       const OptionalTensor& residual_, bool save_output) {
  const Tensor& bias = value_or_undefined(bias_);
  const Tensor& slope = value_or_undefined(slope_);
  const Tensor& residual = value_or_undefined(residual_);
  const bool needs_grad = compute_requires_grad(input, weight, bias, slope, residual);
  const bool composed =
      any_dual(input, weight, bias, slope, residual) || !has_sizes(input) || !has_sizes(weight) ||
      (needs_grad && bias.defined() &&
       (bias.dim() != 1 || bias.sym_size(0) != weight.sym_size(0))) ||
      (needs_grad && (!is_kernel_dtype(input.scalar_type()) || weight.dim() != 2));
  if (C10_UNLIKELY(composed)) {
    check_linear(input, weight, bias_);
    const Epilogue epilogue("linear", activation, parameters, slope_);
    return epilogue.compose(with_residual(at::linear(input, weight, bias_), residual));
  }
  const auto below = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return linear_op.redispatch(keys & c10::after_autograd_keyset, input, weight, bias_, activation,
                                parameters, slope_, residual_, save_output);
  };
  if (!needs_grad) {
    return below();
  }
  const Epilogue epilogue("linear", activation, parameters, slope_);
  const auto product = [&](const OptionalTensor& added) {
    return linear_autograd(keys, input, weight, bias_, std::nullopt, {}, {}, added, true);
  };
  // The composition keeps what PyTorch's activation keeps: no other output that may not be written
  // to.
  const auto activate = [&](const Tensor& z) {
    return save_output ? epilogue.apply(z) : epilogue.compose(z);
  };
  if (residual.defined() && !fits_output(residual, input, weight)) {
    return activate(with_residual(product(std::nullopt), residual));
  }
  const bool saves_pre_activation =
      !epilogue.is_identity() && !(save_output && epilogue.saves_output());
  if (saves_pre_activation &&
      (residual.defined() || !(weight.requires_grad() && input.requires_grad()))) {
    // For higher orders one node would have to keep the residual, and the input and the weight, of
    // which PyTorch keeps only one here.
    return activate(product(residual_));
  }
  const auto node = make_node<LinearNode>(input, weight, bias, slope, residual);
  Tensor pre_activation;
  Tensor result = [&] {
    if (!saves_pre_activation) {
      return below();
    }
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, z] = linear_training_op.redispatch(keys & c10::after_autograd_keyset, input,
                                                     weight, bias_, activation, parameters, slope_);
    pre_activation = z;
    return output;
  }();
  set_history(result, node);
  node->keep(epilogue, activation, parameters, save_output, result, pre_activation, bias, slope);
  if (weight.requires_grad()) {
    node->input = SavedVariable(input, /*is_output=*/false);
  }
  if (input.requires_grad()) {
    node->weight = SavedVariable(alias_of(weight), /*is_output=*/false);
  }
  node_is_complete(node);
  return result;
}

// dz = grad * act'; dinput = dz @ weight, dweight = dz.T @ input, dbias = sum of dz. Of
// differentiable operators, so that every higher order follows.
FusedGradients linear_gradients(const Epilogue& epilogue, const Tensor& grad, const Tensor& saved,
                                const OptionalTensor& input, const OptionalTensor& weight,
                                const FusedMask& mask) {
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

FusedGradients linear_backward_autograd(c10::DispatchKeySet keys, const Tensor& grad,
                                        const OptionalTensor& saved, const OptionalTensor& input,
                                        const OptionalTensor& weight, const OptionalTensor& bias,
                                        const OptionalTensor& slope, ActivationName activation,
                                        at::ArrayRef<double> parameters, FusedMask mask,
                                        bool save_output) {
  const auto each = {&value_or_undefined(saved),  &value_or_undefined(input),
                     &value_or_undefined(weight), &value_or_undefined(bias),
                     &value_or_undefined(slope),  &grad};
  const bool composed = std::any_of(each.begin(), each.end(), [](const Tensor* t) {
    return t->defined() && (compute_requires_grad(*t) || is_dual(*t));
  });
  if (!composed) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return linear_backward_op.redispatch(keys & c10::after_autograd_keyset, grad, saved, input,
                                         weight, bias, slope, activation, parameters, mask,
                                         save_output);
  }
  const Epilogue epilogue("linear_backward", activation, parameters, slope);
  check_linear_backward(epilogue, grad, saved, input, weight, bias, mask);
  const bool saved_is_output = save_output && epilogue.saves_output();
  if (epilogue.is_identity() || saved_is_output) {
    return linear_gradients(epilogue, grad, value_or_undefined(saved), input, weight, mask);
  }
  // The saved pre-activation does not know where it came from.
  TORCH_CHECK(is_defined(input) && is_defined(weight),
              "fastact.linear_backward(): input, weight: expected tensors, which a derivative of "
              "activation='",
              *activation, "' needs, got None");
  return linear_gradients(epilogue, grad, epilogue.saved_from(at::linear(*input, *weight, bias)),
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
    const Tensor z =
        linear_op.call(input, weight, bias, std::nullopt, {}, std::nullopt, std::nullopt,
                       /*save_output=*/true);
    return {is_forward_mode ? epilogue.compose(z) : epilogue.apply(z), z};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return linear_training_op.redispatch(keys & c10::after_autograd_keyset, input, weight, bias,
                                       activation, parameters, slope);
}

// The packed weight belongs to a frozen model; a gradient is that of the plain one.
Tensor linear_packed_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& packed,
                              const Tensor& weight, const OptionalTensor& bias,
                              ActivationName activation, at::ArrayRef<double> parameters,
                              const OptionalTensor& slope, const OptionalTensor& residual) {
  check_packed(packed, weight);
  const Tensor& b = value_or_undefined(bias);
  const Tensor& s = value_or_undefined(slope);
  const Tensor& r = value_or_undefined(residual);
  if (compute_requires_grad(input, weight, b, s, r) || any_dual(input, weight, b, s, r)) {
    return linear_op.call(input, weight, bias, activation, parameters, slope, residual,
                          /*save_output=*/true);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return linear_packed_op.redispatch(keys & c10::after_autograd_keyset, input, packed, weight, bias,
                                     activation, parameters, slope, residual);
}

Tensor linear_meta(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                   ActivationName activation, at::ArrayRef<double> parameters,
                   const OptionalTensor& slope, const OptionalTensor& residual, bool) {
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
      linear_meta(input, weight, bias, activation, parameters, slope, std::nullopt, true);
  return {output, at::empty_symint(output.sym_sizes(), output.options())};
}

FusedGradients linear_backward_meta(const Tensor& grad, const OptionalTensor& saved,
                                    const OptionalTensor& input, const OptionalTensor& weight,
                                    const OptionalTensor& bias, const OptionalTensor& slope,
                                    ActivationName activation, at::ArrayRef<double> parameters,
                                    FusedMask mask, bool) {
  const Epilogue epilogue("linear_backward", activation, parameters, slope);
  check_linear_backward(epilogue, grad, saved, input, weight, bias, mask);
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
  check_pack_linear(weight);
  return at::empty({0}, weight.options().dtype(at::kByte));
}

Tensor linear_packed_meta(const Tensor& input, const Tensor& packed, const Tensor& weight,
                          const OptionalTensor& bias, ActivationName activation,
                          at::ArrayRef<double> parameters, const OptionalTensor& slope,
                          const OptionalTensor& residual) {
  check_packed(packed, weight);
  return linear_meta(input, weight, bias, activation, parameters, slope, residual, true);
}

Tensor compose_linear_packed(const Tensor& input, const Tensor& packed, const Tensor& weight,
                             const OptionalTensor& bias, ActivationName activation,
                             at::ArrayRef<double> parameters, const OptionalTensor& slope,
                             const OptionalTensor& residual) {
  check_packed(packed, weight);
  return compose_linear(input, weight, bias, activation, parameters, slope, residual, true);
}

}  // namespace

void check_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias_) {
  const OperatorName op("linear");
  const Tensor& bias = value_or_undefined(bias_);
  check_defined(op, "input", input);
  check_defined(op, "weight", weight);
  TORCH_CHECK(weight.dim() == 1 || weight.dim() == 2, op,
              "weight: expected 1 or 2 dimensions, got ", weight.dim());
  TORCH_CHECK(input.dim() > 0, op,
              "input: expected at least 1 dimension, got a 0-dimensional tensor");
  check_like(op, "weight", weight, "input", input);
  if (bias.defined()) {
    check_like(op, "bias", bias, "input", input);
  }
  if (input.is_nested() || weight.is_nested()) {
    return;  // at::linear compares their sizes
  }
  const c10::SymInt in_features = weight.sym_size(-1);
  TORCH_CHECK(input.sym_size(-1) == in_features, op, "input: expected a last dimension of ",
              in_features, " to match weight of shape ", weight.sym_sizes(), ", got shape ",
              input.sym_sizes());
  if (bias.defined()) {
    TORCH_CHECK(bias.dim() == 0 || bias.dim() > 1 || weight.dim() == 1 || bias.sym_size(0) == 1 ||
                    bias.sym_size(0) == weight.sym_size(0),
                op, "bias: expected shape [", weight.sym_size(0), "] to match weight of shape ",
                weight.sym_sizes(), ", got shape ", bias.sym_sizes());
  }
}

void check_linear_backward(const Epilogue& epilogue, const Tensor& grad,
                           const OptionalTensor& saved, const OptionalTensor& input,
                           const OptionalTensor& weight, const OptionalTensor& bias,
                           const FusedMask& mask) {
  const OperatorName op("linear_backward");
  check_defined(op, "grad", grad);
  // Its dtype and sizes are those of every operand.
  const Tensor& dz = is_stand_in(grad) && is_defined(saved) ? *saved : grad;
  const auto there = [&](const char* name, const OptionalTensor& t) {
    check_defined(op, name, value_or_undefined(t));
    check_like(op, name, *t, "grad", dz);
    TORCH_CHECK(has_sizes(*t), op, name, ": expected a strided tensor, got ", t->layout());
  };
  TORCH_CHECK(has_sizes(grad), op, "grad: expected a strided tensor, got ", grad.layout());
  TORCH_CHECK(grad.dim() > 0, op,
              "grad: expected at least 1 dimension, got a 0-dimensional tensor");
  TORCH_CHECK_TYPE(!mask[3] || epilogue.slope().defined(), op,
                   "slope: expected a tensor where mask asks for its gradient, got None");
  if (!epilogue.is_identity()) {
    there("saved", saved);
    check_gradient(op, grad, "saved", *saved);
    if (epilogue.slope().defined()) {
      check_prelu(op, *saved, epilogue.slope(), "slope");
    }
  }
  if (is_stand_in(dz)) {
    return;
  }
  const c10::SymInt out_features = dz.sym_size(-1);
  if (mask[0]) {
    there("weight", weight);
    TORCH_CHECK(weight->dim() == 2, op, "weight: expected 2 dimensions, got ", weight->dim());
    check_sizes(op, "weight", *weight, "grad's last dimension by any",
                {out_features, weight->sym_size(1)});
  }
  if (mask[1]) {
    there("input", input);
    TORCH_CHECK(input->dim() > 0, op,
                "input: expected at least 1 dimension, got a 0-dimensional tensor");
    c10::SymDimVector sizes(dz.sym_sizes().begin(), dz.sym_sizes().end());
    sizes.back() = input->sym_size(-1);
    check_sizes(op, "input", *input, "grad but for the last dimension", sizes);
  }
  if (is_defined(bias)) {
    there("bias", bias);
    check_sizes(op, "bias", *bias, "grad's last dimension", {out_features});
  }
}

void check_pack_linear(const Tensor& weight) {
  check_defined("pack_linear", "weight", weight);
  TORCH_CHECK(weight.dim() == 2, "fastact.pack_linear(): weight: expected 2 dimensions, got ",
              weight.dim());
}

Tensor compose_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                      ActivationName activation, at::ArrayRef<double> parameters,
                      const OptionalTensor& slope, const OptionalTensor& residual, bool) {
  const Epilogue epilogue("linear", activation, parameters, slope);
  check_linear(input, weight, bias);
  return epilogue.apply_in_place(
      with_residual(at::linear(input, weight, bias).contiguous(), value_or_undefined(residual)));
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

FusedGradients compose_linear_backward(const Tensor& grad, const OptionalTensor& saved,
                                       const OptionalTensor& input, const OptionalTensor& weight,
                                       const OptionalTensor& bias, const OptionalTensor& slope,
                                       ActivationName activation, at::ArrayRef<double> parameters,
                                       FusedMask mask, bool save_output) {
  const Epilogue epilogue("linear_backward", activation, parameters, slope);
  check_linear_backward(epilogue, grad, saved, input, weight, bias, mask);
  const Tensor& kept = value_or_undefined(saved);
  const bool is_output = epilogue.is_identity() || save_output;
  return linear_gradients(epilogue, grad, is_output ? kept : epilogue.saved_from(kept), input,
                          weight, mask);
}

namespace {

// ---- autocast ----------------------------------------------------------------------------------

Tensor linear_autocast(AutocastPolicy policy, c10::DeviceType device, const Tensor& input,
                       const Tensor& weight, const OptionalTensor& bias, ActivationName activation,
                       at::ArrayRef<double> parameters, const OptionalTensor& slope,
                       const OptionalTensor& residual, bool save_output) {
  if (!autocast_fuses(activation, residual, device)) {
    return Epilogue("linear", activation, parameters, slope)
        .apply(linear_op.call(input, weight, bias, std::nullopt, {}, {}, residual, save_output));
  }
  const AutocastCall cast(policy, device, input);
  return linear_op.call(cast(input), cast(weight), cast(bias), activation, parameters, cast(slope),
                        residual, save_output);
}

// The packed weight has a dtype of its own: where that is another one, the plain weight is cast.
Tensor linear_packed_autocast(AutocastPolicy policy, c10::DeviceType device, const Tensor& input,
                              const Tensor& packed, const Tensor& weight,
                              const OptionalTensor& bias, ActivationName activation,
                              at::ArrayRef<double> parameters, const OptionalTensor& slope,
                              const OptionalTensor& residual) {
  if (!autocast_fuses(activation, residual, device)) {
    return Epilogue("linear", activation, parameters, slope)
        .apply(linear_packed_op.call(input, packed, weight, bias, std::nullopt, {}, {}, residual));
  }
  const AutocastCall cast(policy, device, input);
  if (weight.scalar_type() != cast.dtype()) {
    return linear_op.call(cast(input), cast(weight), cast(bias), activation, parameters,
                          cast(slope), residual, /*save_output=*/true);
  }
  return linear_packed_op.call(cast(input), packed, weight, cast(bias), activation, parameters,
                               cast(slope), residual);
}

const Registration register_linear{linear_op,
                                   Autograd<&linear_autograd>{},
                                   Cpu<&linear_cpu>{},
                                   Fake<&linear_meta>{},
                                   Composed<&compose_linear>{},
                                   AutocastBy<&linear_autocast>{}};
const Registration register_linear_packed{linear_packed_op,
                                          Autograd<&linear_packed_autograd>{},
                                          Cpu<&linear_packed_cpu>{},
                                          Fake<&linear_packed_meta>{},
                                          Composed<&compose_linear_packed>{},
                                          AutocastBy<&linear_packed_autocast>{}};
const Registration register_linear_training{
    linear_training_op, Autograd<&linear_training_autograd>{}, Cpu<&linear_training_cpu>{},
    Fake<&linear_training_meta>{}, Composed<&compose_linear_training>{}};
const Registration register_linear_backward{
    linear_backward_op, Autograd<&linear_backward_autograd>{}, Cpu<&linear_backward_cpu>{},
    Fake<&linear_backward_meta>{}, Composed<&compose_linear_backward>{}};
const Registration register_pack_linear{pack_linear_op, Cpu<&pack_linear_cpu>{},
                                        Fake<&pack_linear_meta>{},
                                        Composed<&compose_pack_linear>{}};

}  // namespace

}  // namespace fastact
