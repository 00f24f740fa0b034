// linear on CUDA devices: the products are ATen's, what follows them is one pass. What the
// composition does as well is left to it: a bias is cuBLAS's, an activation alone runs in place.
#include <ATen/ops/_addmm_activation.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>

#include <string_view>

#include "cuda/epilogue.h"
#include "ops/linear/linear.h"

namespace fastact {
namespace {

bool linear_covered(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  if (!covered<kDevice>(input, weight, bias)) {
    return false;
  }
  if (weight.dim() != 2) {
    return not_covered(c10::str("a weight of ", weight.dim(), " dimension"));
  }
  if (is_defined(bias) && (bias->dim() != 1 || bias->numel() != weight.size(0))) {
    return not_covered(c10::str("a bias of shape ", bias->sizes()));
  }
  return true;
}

Tensor as_matrix(const Tensor& t) { return t.dim() == 2 ? t : t.reshape({-1, t.size(-1)}); }

// cuBLASLt ends the tiles of a product with these activations while they are in registers. (On
// CPUs, where the emulator runs, at::_addmm_activation's GELU is another one.)
bool ends_tiles(const Epilogue& epilogue) {
  const std::string_view name = epilogue.activation() ? epilogue.activation()->name : "";
  return name == "relu" || (name == "gelu_tanh" && kDevice == at::kCUDA);
}

Tensor linear_cuda(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                   ActivationName activation, at::ArrayRef<double> parameters,
                   const OptionalTensor& slope, const OptionalTensor& residual, bool save_output) {
  const Epilogue epilogue("linear", activation, parameters, slope);
  check_linear(input, weight, bias);
  const bool has_numbers = input.numel() > 0 && weight.numel() > 0;
  if (!linear_covered(input, weight, bias) || !has_numbers) {
    return compose_linear(input, weight, bias, activation, parameters, slope, residual,
                          save_output);
  }
  at::DimVector sizes(input.sizes().begin(), input.sizes().end());
  sizes.back() = weight.size(0);
  if (!is_defined(residual) && is_defined(bias) && ends_tiles(epilogue)) {
    const bool is_gelu = std::string_view(epilogue.activation()->name) != "relu";
    return at::_addmm_activation(*bias, as_matrix(input), weight.t(), 1, 1, is_gelu).view(sizes);
  }
  if (!is_defined(residual) || !has_device_epilogue(epilogue) ||
      !covered<kDevice>(input, residual) || residual->device() != input.device() ||
      !fits_output(*residual, input, weight)) {
    return compose_linear(input, weight, bias, activation, parameters, slope, residual,
                          save_output);
  }
  const Tensor product = at::mm(as_matrix(input), weight.t()).contiguous();
  finish_on_device("linear", epilogue, product, is_defined(bias) ? bias->contiguous() : Tensor(),
                   residual->contiguous(), weight.size(0));
  return product.view(sizes);
}

FusedGradients linear_backward_cuda(const Tensor& grad, const OptionalTensor& saved,
                                    const OptionalTensor& input, const OptionalTensor& weight,
                                    const OptionalTensor& bias, const OptionalTensor& slope,
                                    ActivationName activation, at::ArrayRef<double> parameters,
                                    FusedMask mask, bool save_output) {
  const OperatorName op("linear_backward");
  const Epilogue epilogue("linear_backward", activation, parameters, slope);
  check_linear_backward(epilogue, grad, saved, input, weight, bias, mask);
  if (!mask[2] || !has_device_epilogue(epilogue) || is_stand_in(grad) ||
      !covered<kDevice>(grad, saved)) {
    return compose_linear_backward(grad, saved, input, weight, bias, slope, activation, parameters,
                                   mask, save_output);
  }
  Tensor kept;
  if (!epilogue.is_identity()) {
    kept = (save_output ? *saved : epilogue.saved_from(*saved)).contiguous();
  }
  const auto [dz, dbias] = epilogue_gradients_on_device(op, epilogue, grad.contiguous(), kept);
  const auto none = [&] { return at::empty({0}, grad.options()); };
  return {mask[0] ? at::matmul(dz, *weight) : none(),
          mask[1] ? at::mm(as_matrix(dz).t(), as_matrix(*input)) : none(), dbias, none(),
          mask[4] ? residual_gradient(epilogue, dz) : none()};
}

const CudaRegistration register_linear{linear_op, Cuda<&linear_cuda>{}};
const CudaRegistration register_linear_backward{linear_backward_op, Cuda<&linear_backward_cuda>{}};

}  // namespace
}  // namespace fastact
