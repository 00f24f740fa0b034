// In which dtype operators compute under torch.autocast: as PyTorch's of the same names, a row
// each.
#pragma once

#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <optional>
#include <string_view>

#include "core/checks.h"
#include "core/library.h"

namespace fastact {

enum class AutocastPolicy {
  kAsGiven,
  kLowerPrecision,  // the dtype that autocast was given
  kFloat32,
  kByInput,  // the lower precision where the first argument has it, else float32
};

struct AutocastRow {
  std::string_view name;  // of the operator
  AutocastPolicy cpu;
  AutocastPolicy cuda;
};

// Operators that are not here compute in the dtype they are given. PyTorch's lists stand in
// ATen/autocast_mode.h (CUDA) and autocast_mode.cpp (CPU). On the CPU it has neither gru nor the
// cells, but for a plain one's: it casts the products in them, and a state keeps its dtype.
inline constexpr AutocastRow kAutocastRows[] = {
    {"conv", AutocastPolicy::kLowerPrecision, AutocastPolicy::kLowerPrecision},
    {"conv_packed", AutocastPolicy::kLowerPrecision, AutocastPolicy::kLowerPrecision},
    {"gru", AutocastPolicy::kByInput, AutocastPolicy::kLowerPrecision},
    {"gru_cell", AutocastPolicy::kByInput, AutocastPolicy::kLowerPrecision},
    {"linear", AutocastPolicy::kLowerPrecision, AutocastPolicy::kLowerPrecision},
    {"linear_packed", AutocastPolicy::kLowerPrecision, AutocastPolicy::kLowerPrecision},
    {"log_softmax", AutocastPolicy::kAsGiven, AutocastPolicy::kFloat32},
    {"lstm", AutocastPolicy::kLowerPrecision, AutocastPolicy::kLowerPrecision},
    {"lstm_cell", AutocastPolicy::kByInput, AutocastPolicy::kLowerPrecision},
    {"masked_softmax", AutocastPolicy::kAsGiven, AutocastPolicy::kFloat32},
    {"prelu", AutocastPolicy::kLowerPrecision, AutocastPolicy::kLowerPrecision},
    {"rnn", AutocastPolicy::kLowerPrecision, AutocastPolicy::kLowerPrecision},
    {"rnn_cell", AutocastPolicy::kLowerPrecision, AutocastPolicy::kLowerPrecision},
    {"softmax", AutocastPolicy::kAsGiven, AutocastPolicy::kFloat32},
    {"softplus", AutocastPolicy::kAsGiven, AutocastPolicy::kFloat32},
};

constexpr AutocastPolicy autocast_policy(std::string_view name, c10::DeviceType device) {
  for (const AutocastRow& row : kAutocastRows) {
    if (row.name == name) {
      return device == c10::kCPU ? row.cpu : row.cuda;
    }
  }
  return AutocastPolicy::kAsGiven;
}

// implement(library, policy, device) where an operator's row says that tensors are cast.
template <class F>
void for_each_autocast(const char* name, const F& implement) {
  for (const c10::DeviceType device : {c10::kCPU, c10::kCUDA}) {
    const AutocastPolicy policy = autocast_policy(name, device);
    if (policy != AutocastPolicy::kAsGiven) {
      const c10::DispatchKey keys[] = {
          at::autocast::get_autocast_dispatch_key_from_device_type(device)};
      implement_for(keys, [&](torch::Library& m) { implement(m, policy, device); });
    }
  }
}

// Registers that every tensor is cast.
void implement_autocast(const char* name);

// Whether a product in the lower precision may end with this activation, as one operator: where
// autocast leaves the activation in the dtype of the product, or of its sum with a residual, which
// promotes. Others follow as operators of their own, which autocast casts.
bool autocast_fuses(std::optional<std::string_view> activation, const OptionalTensor& residual,
                    c10::DeviceType device);

// While one lives autocast is off, and what it is called with is cast by the policy: floating-point
// tensors, but for float64.
class AutocastCall {
 public:
  AutocastCall(AutocastPolicy policy, c10::DeviceType device, const Tensor& input)
      : off_(at::autocast::get_autocast_dispatch_key_from_device_type(device)),
        device_(device),
        dtype_(dtype_of(policy, device, input)) {}

  at::ScalarType dtype() const { return dtype_; }
  Tensor operator()(const Tensor& t) const { return at::autocast::cached_cast(dtype_, t, device_); }
  OptionalTensor operator()(const OptionalTensor& t) const {
    return at::autocast::cached_cast(dtype_, t, device_);
  }

 private:
  static at::ScalarType dtype_of(AutocastPolicy policy, c10::DeviceType device,
                                 const Tensor& input) {
    const at::ScalarType low = at::autocast::get_lower_precision_fp_from_device_type(device);
    const bool is_low =
        policy == AutocastPolicy::kLowerPrecision ||
        (policy == AutocastPolicy::kByInput && input.defined() && input.scalar_type() == low);
    return is_low ? low : at::kFloat;
  }

  c10::impl::ExcludeDispatchKeyGuard off_;
  c10::DeviceType device_;
  at::ScalarType dtype_;
};

}  // namespace fastact
