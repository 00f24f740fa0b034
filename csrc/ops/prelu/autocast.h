// PReLU under autocast, for itself and for the fused operators that end with it.
#pragma once

#include <ATen/autocast_mode.h>

#include "ops/prelu/prelu.h"

namespace fastact {

// As PyTorch's under autocast: in its lower precision.
template <c10::DeviceType device>
Tensor prelu_autocast(const Tensor& self, const Tensor& weight) {
  const c10::impl::ExcludeDispatchKeyGuard guard(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto dtype = at::autocast::get_lower_precision_fp_from_device_type(device);
  return prelu_op.call(at::autocast::cached_cast(dtype, self, device),
                       at::autocast::cached_cast(dtype, weight, device));
}

}  // namespace fastact
