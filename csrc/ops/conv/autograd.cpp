// conv with an activation: autograd, fake kernels, autocast and registration.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "core/fused_node.h"
#include "core/registration.h"
#include "ops/conv/conv.h"

namespace fastact {
namespace {

struct ConvNode final : OperatorNode<ConvNode>, FusedState {
  std::vector<c10::SymInt> stride;
  std::vector<c10::SymInt> padding;
  std::vector<c10::SymInt> dilation;
  c10::SymInt groups;

  std::string name() const override { return "fastact::conv"; }

  template <class F>
  void each_attribute(const F& f) {
    FusedState::each_attribute(f);
    f(stride);
    f(padding);
    f(dilation);
    f(groups);
  }

  void backward(const Tensor& grad, variable_list& result) {
    gradients(*this, grad, result, [&](const FusedMask& mask) {
      return conv_backward_op.call(grad, none_if_undefined(saved.unpack(getptr())), input.unpack(),
                                   weight.unpack(), none_if_undefined(bias.unpack()),
                                   none_if_undefined(slope.unpack()), stride, padding, dilation,
                                   groups, activation, parameters, mask, save_output);
    });
  }
};

Tensor conv_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& weight,
                     const OptionalTensor& bias_, c10::SymIntArrayRef stride,
                     c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
                     ActivationName activation, at::ArrayRef<double> parameters,
                     const OptionalTensor& slope_, const OptionalTensor& residual_,
                     bool save_output) {
  const Tensor& bias = value_or_undefined(bias_);
  const Tensor& slope = value_or_undefined(slope_);
  const Tensor& residual = value_or_undefined(residual_);
  const bool needs_grad = compute_requires_grad(input, weight, bias, slope, residual);
  const bool composed = any_dual(input, weight, bias, slope, residual) || !has_sizes(input) ||
                        !has_sizes(weight) || (needs_grad && !is_kernel_dtype(input.scalar_type()));
  const auto below = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return conv_op.redispatch(keys & c10::after_autograd_keyset, input, weight, bias_, stride,
                              padding, dilation, groups, activation, parameters, slope_, residual_,
                              save_output);
  };
  if (!composed && !needs_grad) {
    return below();
  }
  const Epilogue epilogue("conv", activation, parameters, slope_);
  const ConvGeometry geometry = conv_geometry("conv", weight, stride, padding, dilation, groups);
  check_conv("conv", input, weight, bias_, geometry);
  if (C10_UNLIKELY(composed)) {
    return epilogue.compose(with_residual(torch_conv(input, weight, bias_, geometry), residual));
  }
  const auto product = [&](const OptionalTensor& added) {
    return conv_autograd(keys, input, weight, bias_, stride, padding, dilation, groups,
                         std::nullopt, {}, {}, added, true);
  };
  // The composition keeps what PyTorch's activation keeps: no other output that may not be written
  // to.
  const auto activate = [&](const Tensor& z) {
    return save_output ? epilogue.apply(z) : epilogue.compose(z);
  };
  if (residual.defined() && !fits_conv_output(residual, input, weight, geometry)) {
    return activate(with_residual(product(std::nullopt), residual));
  }
  const bool saves_pre_activation =
      !epilogue.is_identity() && !(save_output && epilogue.saves_output());
  if (saves_pre_activation && residual.defined()) {
    return activate(product(residual_));  // for higher orders one node would have to keep it
  }
  const auto node = make_node<ConvNode>(input, weight, bias, slope, residual);
  Tensor pre_activation;
  Tensor result = [&] {
    if (!saves_pre_activation) {
      return below();
    }
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, z] =
        conv_training_op.redispatch(keys & c10::after_autograd_keyset, input, weight, bias_, stride,
                                    padding, dilation, groups, activation, parameters, slope_);
    pre_activation = z;
    return output;
  }();
  set_history(result, node);
  node->keep(epilogue, activation, parameters, save_output, result, pre_activation, bias, slope);
  node->input = SavedVariable(input, /*is_output=*/false);
  node->weight = SavedVariable(weight, /*is_output=*/false);
  node->stride = stride.vec();
  node->padding = padding.vec();
  node->dilation = dilation.vec();
  node->groups = std::move(groups);
  node_is_complete(node);
  return result;
}

FusedGradients conv_backward_autograd(c10::DispatchKeySet keys, const Tensor& grad,
                                      const OptionalTensor& saved, const Tensor& input,
                                      const Tensor& weight, const OptionalTensor& bias,
                                      const OptionalTensor& slope, c10::SymIntArrayRef stride,
                                      c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                                      c10::SymInt groups, ActivationName activation,
                                      at::ArrayRef<double> parameters, FusedMask mask,
                                      bool save_output) {
  const Tensor& kept = value_or_undefined(saved);
  const bool composed =
      compute_requires_grad(grad, kept, input, weight, value_or_undefined(bias),
                            value_or_undefined(slope)) ||
      any_dual(grad, kept, input, weight, value_or_undefined(bias), value_or_undefined(slope));
  if (!composed) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return conv_backward_op.redispatch(keys & c10::after_autograd_keyset, grad, saved, input,
                                       weight, bias, slope, stride, padding, dilation, groups,
                                       activation, parameters, mask, save_output);
  }
  const Epilogue epilogue("conv_backward", activation, parameters, slope);
  const ConvGeometry geometry =
      conv_geometry("conv_backward", weight, stride, padding, dilation, groups);
  check_conv_backward(epilogue, grad, saved, input, weight, bias, geometry, mask);
  // A saved pre-activation does not know where it came from.
  const bool is_output = epilogue.is_identity() || (save_output && epilogue.saves_output());
  return conv_gradients(
      epilogue, grad,
      is_output ? kept : epilogue.saved_from(torch_conv(input, weight, bias, geometry)), input,
      weight, geometry, mask);
}

// conv's own kernel runs it below autograd; here come the outer levels of functorch's transforms.
std::tuple<Tensor, Tensor> conv_training_autograd(
    c10::DispatchKeySet keys, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
    c10::SymInt groups, ActivationName activation, at::ArrayRef<double> parameters,
    const OptionalTensor& slope) {
  const Tensor& b = value_or_undefined(bias);
  const Tensor& s = value_or_undefined(slope);
  const bool is_forward_mode = any_dual(input, weight, b, s);
  if (is_forward_mode || compute_requires_grad(input, weight, b, s)) {
    const Epilogue epilogue("conv", activation, parameters, slope);
    const Tensor z = conv_op.call(input, weight, bias, stride, padding, dilation, groups,
                                  std::nullopt, {}, std::nullopt, std::nullopt,
                                  /*save_output=*/true);
    return {is_forward_mode ? epilogue.compose(z) : epilogue.apply(z), z};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return conv_training_op.redispatch(keys & c10::after_autograd_keyset, input, weight, bias, stride,
                                     padding, dilation, groups, activation, parameters, slope);
}

// The packed weight belongs to a frozen model; a gradient is that of the plain one.
Tensor conv_packed_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& packed,
                            const Tensor& weight, const OptionalTensor& bias,
                            c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                            c10::SymIntArrayRef dilation, c10::SymInt groups,
                            ActivationName activation, at::ArrayRef<double> parameters,
                            const OptionalTensor& slope, const OptionalTensor& residual,
                            std::optional<c10::string_view> winograd) {
  const Tensor& b = value_or_undefined(bias);
  const Tensor& s = value_or_undefined(slope);
  const Tensor& r = value_or_undefined(residual);
  winograd_setting("conv_packed", winograd);
  if (compute_requires_grad(input, weight, b, s, r) || any_dual(input, weight, b, s, r)) {
    check_packed_conv(packed, weight,
                      conv_geometry("conv_packed", weight, stride, padding, dilation, groups));
    return conv_op.call(input, weight, bias, stride, padding, dilation, std::move(groups),
                        activation, parameters, slope, residual, /*save_output=*/true);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return conv_packed_op.redispatch(keys & c10::after_autograd_keyset, input, packed, weight, bias,
                                   stride, padding, dilation, groups, activation, parameters, slope,
                                   residual, winograd);
}

// ---- fake kernels ------------------------------------------------------------------------------

Tensor conv_meta(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                 c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                 c10::SymIntArrayRef dilation, c10::SymInt groups, ActivationName activation,
                 at::ArrayRef<double> parameters, const OptionalTensor& slope,
                 const OptionalTensor& residual, bool) {
  const Epilogue epilogue("conv", activation, parameters, slope);
  const ConvGeometry geometry =
      conv_geometry("conv", weight, stride, padding, dilation, std::move(groups));
  check_conv("conv", input, weight, bias, geometry);
  const bool has_batch = fastact::has_batch(input, weight);
  const Tensor x = batched(input, has_batch);
  const Tensor z = at::empty_symint(conv_output_sizes(x, weight, geometry), input.options(),
                                    conv_memory_format(x, weight));
  return epilogue.apply_in_place(
      with_residual(unbatched(z, has_batch), value_or_undefined(residual)));
}

std::tuple<Tensor, Tensor> conv_training_meta(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
    c10::SymInt groups, ActivationName activation, at::ArrayRef<double> parameters,
    const OptionalTensor& slope) {
  const auto meta = [&](ActivationName name, at::ArrayRef<double> values,
                        const OptionalTensor& own_slope) {
    return conv_meta(input, weight, bias, stride, padding, dilation, groups, name, values,
                     own_slope, std::nullopt, true);
  };
  return {meta(activation, parameters, slope), meta(std::nullopt, {}, std::nullopt)};
}

FusedGradients conv_backward_meta(const Tensor& grad, const OptionalTensor& saved,
                                  const Tensor& input, const Tensor& weight,
                                  const OptionalTensor& bias, const OptionalTensor& slope,
                                  c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                  c10::SymIntArrayRef dilation, c10::SymInt groups,
                                  ActivationName activation, at::ArrayRef<double> parameters,
                                  FusedMask mask, bool) {
  const Epilogue epilogue("conv_backward", activation, parameters, slope);
  const ConvGeometry geometry =
      conv_geometry("conv_backward", weight, stride, padding, dilation, groups);
  check_conv_backward(epilogue, grad, saved, input, weight, bias, geometry, mask);
  const bool has_batch = fastact::has_batch(input, weight);
  const Tensor x = batched(input, has_batch);
  const at::MemoryFormat format = conv_memory_format(x, weight);
  const auto none = [&] { return at::empty({0}, input.options()); };
  const auto make = [&](bool wanted, c10::SymIntArrayRef sizes,
                        at::MemoryFormat own_format = at::MemoryFormat::Contiguous) {
    return wanted ? at::empty_symint(sizes, input.options(), own_format) : none();
  };
  FusedGradients result{make(mask[0], x.sym_sizes(), format),
                        make(mask[1], weight.sym_sizes(), format),
                        make(mask[2], {weight.sym_size(0)}),
                        mask[3] ? make(true, slope->sym_sizes()) : none(), none()};
  if (mask[0]) {
    std::get<0>(result) = unbatched(std::get<0>(result), has_batch);
  }
  if (mask[4]) {
    std::get<4>(result) = is_stand_in(grad)        ? at::empty_like(saved ? *saved : grad)
                          : epilogue.is_identity() ? grad.clone()
                                                   : epilogue.backward(grad, *saved).z;
  }
  return result;
}

Tensor conv_packed_meta(const Tensor& input, const Tensor& packed, const Tensor& weight,
                        const OptionalTensor& bias, c10::SymIntArrayRef stride,
                        c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                        c10::SymInt groups, ActivationName activation,
                        at::ArrayRef<double> parameters, const OptionalTensor& slope,
                        const OptionalTensor& residual, std::optional<c10::string_view> winograd) {
  winograd_setting("conv_packed", winograd);
  check_packed_conv(packed, weight,
                    conv_geometry("conv_packed", weight, stride, padding, dilation, groups));
  return conv_meta(input, weight, bias, stride, padding, dilation, groups, activation, parameters,
                   slope, residual, true);
}

// ---- autocast ----------------------------------------------------------------------------------

Tensor conv_autocast(AutocastPolicy policy, c10::DeviceType device, const Tensor& input,
                     const Tensor& weight, const OptionalTensor& bias, c10::SymIntArrayRef stride,
                     c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
                     ActivationName activation, at::ArrayRef<double> parameters,
                     const OptionalTensor& slope, const OptionalTensor& residual,
                     bool save_output) {
  if (!autocast_fuses(activation, residual, device)) {
    return Epilogue("conv", activation, parameters, slope)
        .apply(conv_op.call(input, weight, bias, stride, padding, dilation, std::move(groups),
                            std::nullopt, {}, {}, residual, save_output));
  }
  const AutocastCall cast(policy, device, input);
  return conv_op.call(cast(input), cast(weight), cast(bias), stride, padding, dilation,
                      std::move(groups), activation, parameters, cast(slope), residual,
                      save_output);
}

// The packed weight has a dtype of its own: where that is another one, the plain weight is cast.
Tensor conv_packed_autocast(AutocastPolicy policy, c10::DeviceType device, const Tensor& input,
                            const Tensor& packed, const Tensor& weight, const OptionalTensor& bias,
                            c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                            c10::SymIntArrayRef dilation, c10::SymInt groups,
                            ActivationName activation, at::ArrayRef<double> parameters,
                            const OptionalTensor& slope, const OptionalTensor& residual,
                            std::optional<c10::string_view> winograd) {
  if (!autocast_fuses(activation, residual, device)) {
    return Epilogue("conv_packed", activation, parameters, slope)
        .apply(conv_packed_op.call(input, packed, weight, bias, stride, padding, dilation,
                                   std::move(groups), std::nullopt, {}, {}, residual, winograd));
  }
  const AutocastCall cast(policy, device, input);
  if (!weight.defined() || weight.scalar_type() != cast.dtype()) {
    return conv_op.call(cast(input), cast(weight), cast(bias), stride, padding, dilation,
                        std::move(groups), activation, parameters, cast(slope), residual,
                        /*save_output=*/true);
  }
  return conv_packed_op.call(cast(input), packed, weight, cast(bias), stride, padding, dilation,
                             std::move(groups), activation, parameters, cast(slope), residual,
                             winograd);
}

const Registration register_conv{conv_op,
                                 Autograd<&conv_autograd>{},
                                 Cpu<&conv_cpu>{},
                                 Fake<&conv_meta>{},
                                 Composed<&compose_conv>{},
                                 AutocastBy<&conv_autocast>{}};
const Registration register_conv_packed{conv_packed_op,
                                        Autograd<&conv_packed_autograd>{},
                                        Cpu<&conv_packed_cpu>{},
                                        Fake<&conv_packed_meta>{},
                                        Composed<&compose_conv_packed>{},
                                        AutocastBy<&conv_packed_autocast>{}};
const Registration register_conv_training{conv_training_op, Autograd<&conv_training_autograd>{},
                                          Cpu<&conv_training_cpu>{}, Fake<&conv_training_meta>{},
                                          Composed<&compose_conv_training>{}};
const Registration register_conv_backward{conv_backward_op, Autograd<&conv_backward_autograd>{},
                                          Cpu<&conv_backward_cpu>{}, Fake<&conv_backward_meta>{},
                                          Composed<&compose_conv_backward>{}};
const Registration register_pack_conv{pack_conv_op, Cpu<&pack_conv_cpu>{}, Fake<&pack_conv_meta>{},
                                      Composed<&compose_pack_conv>{}};

}  // namespace

}  // namespace fastact
