// conv on CUDA devices: the convolutions are ATen's. A residual is added in the activation's pass;
// backward, where channels lie last, the bias's gradient comes of the activation's pass. The rest
// is the composition's.
#include <ATen/ops/empty.h>

#include "cuda/epilogue.h"
#include "ops/conv/conv.h"

namespace fastact {
namespace {

Tensor conv_cuda(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                 c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                 c10::SymIntArrayRef dilation, c10::SymInt groups, ActivationName activation,
                 at::ArrayRef<double> parameters, const OptionalTensor& slope,
                 const OptionalTensor& residual, bool save_output) {
  const Epilogue epilogue("conv", activation, parameters, slope);
  const ConvGeometry geometry = conv_geometry("conv", weight, stride, padding, dilation, groups);
  check_conv("conv", input, weight, bias, geometry);
  if (!is_defined(residual) || !has_device_epilogue(epilogue) ||
      !covered<kDevice>(input, weight, bias, residual) || residual->device() != input.device() ||
      !fits_conv_output(*residual, input, weight, geometry)) {
    return compose_conv(input, weight, bias, stride, padding, dilation, std::move(groups),
                        activation, parameters, slope, residual, save_output);
  }
  const Tensor product = torch_conv(input, weight, bias, geometry);
  const Tensor y = product.is_non_overlapping_and_dense() ? product : product.contiguous();
  finish_on_device("conv", epilogue, y, Tensor(), with_layout_of(y, *residual),
                   std::max<int64_t>(y.numel(), 1));
  return y;
}

FusedGradients conv_backward_cuda(const Tensor& grad, const OptionalTensor& saved,
                                  const Tensor& input, const Tensor& weight,
                                  const OptionalTensor& bias, const OptionalTensor& slope,
                                  c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                  c10::SymIntArrayRef dilation, c10::SymInt groups,
                                  ActivationName activation, at::ArrayRef<double> parameters,
                                  FusedMask mask, bool save_output) {
  const OperatorName op("conv_backward");
  const Epilogue epilogue("conv_backward", activation, parameters, slope);
  const ConvGeometry geometry =
      conv_geometry("conv_backward", weight, stride, padding, dilation, groups);
  check_conv_backward(epilogue, grad, saved, input, weight, bias, geometry, mask);
  const int64_t channel = has_batch(input, weight) ? 1 : 0;
  const auto last = [&](const Tensor& t) { return t.movedim(channel, -1); };
  if (!mask[2] || !epilogue.activation() || is_stand_in(grad) || grad.numel() == 0 ||
      !covered<kDevice>(grad, saved, input, weight) || !last(grad).is_contiguous() ||
      !last(*saved).is_contiguous()) {
    return compose_conv_backward(grad, saved, input, weight, bias, slope, stride, padding, dilation,
                                 std::move(groups), activation, parameters, mask, save_output);
  }
  const Tensor kept = save_output ? *saved : epilogue.saved_from(*saved);
  const auto [z, dbias] =
      epilogue_gradients_on_device(op, epilogue, last(grad), last(kept).contiguous());
  const Tensor dz = z.movedim(-1, channel);
  const auto none = [&] { return at::empty({0}, grad.options()); };
  Tensor dx, dw;
  if (mask[0] || mask[1]) {
    std::tie(dx, dw, std::ignore) =
        torch_conv_backward(dz, input, weight, geometry, {mask[0], mask[1], false});
  }
  return {mask[0] ? dx : none(), mask[1] ? dw : none(), dbias, none(),
          mask[4] ? residual_gradient(epilogue, dz) : none()};
}

const CudaRegistration register_conv{conv_op, Cuda<&conv_cuda>{}};
const CudaRegistration register_conv_backward{conv_backward_op, Cuda<&conv_backward_cuda>{}};

}  // namespace
}  // namespace fastact
