// Autocast: each operator follows its PyTorch twin on each device. Those not listed run in the
// dtype they are given, as their twins do. So does the sum with linear's residual, which promotes.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "activation.h"
#include "linear.h"
#include "operators.h"

namespace fastact {
namespace {

using at::autocast::cached_cast;
using at::autocast::get_lower_precision_fp_from_device_type;

// PReLU lowers what it is given; the sum with a residual may be wider than the product.
bool is_prelu_of_sum(ActivationName activation, const OptionalTensor& slope,
                     const OptionalTensor& residual) {
  return activation == "prelu" && is_defined(slope) && is_defined(residual);
}

template <c10::DeviceType device>
struct LowerPrecision {
  static Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       ActivationName activation, at::ArrayRef<double> parameters,
                       const OptionalTensor& slope, const OptionalTensor& residual,
                       bool save_output) {
    if (is_prelu_of_sum(activation, slope, residual)) {
      return prelu(linear(input, weight, bias, std::nullopt, {}, {}, residual, save_output),
                   *slope);
    }
    static const auto handle = find_operator<LinearSchema>("linear");
    c10::impl::ExcludeDispatchKeyGuard guard(
        at::autocast::get_autocast_dispatch_key_from_device_type(device));
    const auto dtype = get_lower_precision_fp_from_device_type(device);
    return handle.call(cached_cast(dtype, input, device), cached_cast(dtype, weight, device),
                       cached_cast(dtype, bias, device), activation, parameters,
                       cached_cast(dtype, slope, device), residual, save_output);
  }

  // The packed weight has a dtype of its own: where that is another one, the plain weight is cast.
  static Tensor linear_packed(const Tensor& input, const Tensor& packed, const Tensor& weight,
                              const OptionalTensor& bias, ActivationName activation,
                              at::ArrayRef<double> parameters, const OptionalTensor& slope,
                              const OptionalTensor& residual) {
    if (is_prelu_of_sum(activation, slope, residual)) {
      return prelu(linear_packed(input, packed, weight, bias, std::nullopt, {}, {}, residual),
                   *slope);
    }
    const auto dtype = get_lower_precision_fp_from_device_type(device);
    if (weight.scalar_type() != dtype) {
      return linear(input, weight, bias, activation, parameters, slope, residual,
                    /*save_output=*/true);
    }
    static const auto handle = find_operator<LinearPackedSchema>("linear_packed");
    c10::impl::ExcludeDispatchKeyGuard guard(
        at::autocast::get_autocast_dispatch_key_from_device_type(device));
    return handle.call(cached_cast(dtype, input, device), packed, weight,
                       cached_cast(dtype, bias, device), activation, parameters,
                       cached_cast(dtype, slope, device), residual);
  }

  static Tensor prelu(const Tensor& self, const Tensor& weight) {
    using Schema = Tensor(const Tensor&, const Tensor&);
    static const auto handle = find_operator<Schema>("prelu");
    c10::impl::ExcludeDispatchKeyGuard guard(
        at::autocast::get_autocast_dispatch_key_from_device_type(device));
    const auto dtype = get_lower_precision_fp_from_device_type(device);
    return handle.call(cached_cast(dtype, self, device), cached_cast(dtype, weight, device));
  }
};

// CUDA's autocast runs softplus in float32.
Tensor softplus_fp32(const Tensor& self, double beta, double threshold) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCUDA);
  const double parameters[] = {beta, threshold};
  return find_activation("softplus")
      ->call(cached_cast(at::kFloat, self, c10::DeviceType::CUDA), parameters);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastact, AutocastCPU, m) {
  m.impl("linear", TORCH_FN(LowerPrecision<c10::DeviceType::CPU>::linear));
  m.impl("linear_packed", TORCH_FN(LowerPrecision<c10::DeviceType::CPU>::linear_packed));
  m.impl("prelu", TORCH_FN(LowerPrecision<c10::DeviceType::CPU>::prelu));
}

TORCH_LIBRARY_IMPL(fastact, AutocastCUDA, m) {
  m.impl("linear", TORCH_FN(LowerPrecision<c10::DeviceType::CUDA>::linear));
  m.impl("linear_packed", TORCH_FN(LowerPrecision<c10::DeviceType::CUDA>::linear_packed));
  m.impl("prelu", TORCH_FN(LowerPrecision<c10::DeviceType::CUDA>::prelu));
  m.impl("softplus", TORCH_FN(softplus_fp32));
}

}  // namespace fastact
