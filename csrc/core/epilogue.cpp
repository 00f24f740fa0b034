#include "core/epilogue.h"

#include <ATen/ops/log_softmax.h>
#include <ATen/ops/prelu.h>

#include <cmath>

#include "ops/prelu/prelu.h"
#include "ops/softmax/softmax.h"

namespace fastact {

namespace {

constexpr double kMaxDim =
    1 << 16;  // above any number of dimensions; NaN and infinity are not below

}  // namespace

Epilogue::Epilogue(const char* op, std::optional<std::string_view> activation,
                   at::ArrayRef<double> parameters, const std::optional<Tensor>& slope) {
  const bool has_slope = slope && slope->defined();
  const bool is_prelu = activation == "prelu";
  TORCH_CHECK_TYPE(is_prelu || !has_slope, "fastact.", op,
                   "(): slope: expected None (only activation='prelu' takes it), got a tensor");
  std::size_t expected = 0;
  if (!activation) {
    kind_ = Kind::kIdentity;
  } else if (is_prelu) {
    kind_ = Kind::kPrelu;
    TORCH_CHECK_TYPE(has_slope, "fastact.", op,
                     "(): slope: expected a tensor for activation='prelu', got None");
    slope_ = *slope;
  } else if (*activation == "softmax" || *activation == "log_softmax") {
    kind_ = *activation == "softmax" ? Kind::kSoftmax : Kind::kLogSoftmax;
    expected = kind_ == Kind::kSoftmax ? 2 : 1;
    if (!parameters.empty()) {
      TORCH_CHECK_TYPE(
          std::trunc(parameters[0]) == parameters[0] && std::abs(parameters[0]) < kMaxDim,
          "fastact.", op, "(): dim: expected an integer, got ", parameters[0]);
      dim_ = static_cast<int64_t>(parameters[0]);
    }
    scale_ = parameters.size() < 2 ? 1 : parameters[1];
  } else {
    kind_ = Kind::kUnary;
    activation_ = find_activation(*activation);
    TORCH_CHECK_VALUE(activation_, "fastact.", op,
                      "(): activation: expected a registry name, got '", *activation, "'");
    expected = activation_->num_parameters;
    parameters_ = activation_->parameter_defaults;
    std::copy_n(parameters.begin(), std::min(parameters.size(), expected), parameters_.begin());
  }
  TORCH_CHECK_TYPE(parameters.empty() || parameters.size() == expected, "fastact.", op,
                   "(): params: expected none or ", expected, " for activation='",
                   activation.value_or("None"), "', got ", parameters.size());
}

bool Epilogue::saves_output() const {
  switch (kind_) {
    case Kind::kUnary:
      return activation_->saves_output(parameters_.data());
    case Kind::kPrelu:
      return false;
    default:
      return true;
  }
}

Tensor Epilogue::apply_in_place(Tensor z) const {
  if (kind_ == Kind::kUnary && is_kernel_dtype(z.scalar_type()) && has_sizes(z)) {
    return activation_->call_(z, parameters_.data());
  }
  return apply(z);
}

Tensor Epilogue::apply(const Tensor& z) const {
  switch (kind_) {
    case Kind::kIdentity:
      return z;
    case Kind::kUnary:
      return activation_->call(z, parameters_.data());
    case Kind::kPrelu:
      return prelu_op.call(z, slope_);
    case Kind::kSoftmax:
      return softmax_op.call(z, dim_, scale_);
    case Kind::kLogSoftmax:
      return log_softmax_op.call(z, dim_);
  }
  TORCH_INTERNAL_ASSERT(false);
}

Tensor Epilogue::compose(const Tensor& z) const {
  switch (kind_) {
    case Kind::kUnary:
      activation_->check(parameters_.data());
      return activation_->compose(z, parameters_.data());
    case Kind::kPrelu:
      return at::prelu(z, slope_);
    case Kind::kSoftmax:
      return compose_softmax(z, dim_, scale_);
    case Kind::kLogSoftmax:
      return at::log_softmax(z, dim_);
    default:
      return z;
  }
}

Epilogue::Gradients Epilogue::backward(const Tensor& grad, const Tensor& saved) const {
  switch (kind_) {
    case Kind::kIdentity:
      return {grad, {}};
    case Kind::kUnary:
      return {activation_->call_backward(grad, saved, parameters_.data()), {}};
    case Kind::kPrelu: {
      auto [z, slope] = prelu_backward_op.call(grad, saved, slope_);
      return {z, slope};
    }
    case Kind::kSoftmax:
      return {softmax_backward_op.call(grad, saved, dim_, scale_), {}};
    case Kind::kLogSoftmax:
      return {log_softmax_backward_op.call(grad, saved, dim_), {}};
  }
  TORCH_INTERNAL_ASSERT(false);
}

}  // namespace fastact
