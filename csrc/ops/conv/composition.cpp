// conv with an activation: its checks, and the ATen compositions of every backend.
#include <ATen/ops/conv1d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/conv3d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>

#include "ops/conv/conv.h"
#include "ops/prelu/prelu.h"

namespace fastact {
namespace {

// Above any size of an image; below it, the sizes of outputs cannot overflow.
constexpr int64_t kMostOfGeometry = int64_t{1} << 31;

}  // namespace

ConvGeometry conv_geometry(const OperatorName& op, const Tensor& weight, c10::SymIntArrayRef stride,
                           c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                           c10::SymInt groups) {
  check_defined(op, "weight", weight);
  TORCH_CHECK(weight.dim() >= 3 && weight.dim() <= 5, op,
              "weight: expected 3, 4 or 5 dimensions, got ", weight.dim());
  const auto dims = static_cast<std::size_t>(weight.dim()) - 2;
  const auto for_each_dim = [&](const char* name, c10::SymIntArrayRef given, int64_t least) {
    TORCH_CHECK(given.size() == 1 || given.size() == dims, op, name, ": expected one integer or ",
                dims, " to match weight of shape ", weight.sym_sizes(), ", got ", given);
    c10::SymDimVector all;
    for (std::size_t i = 0; i < dims; ++i) {
      all.push_back(given[given.size() == 1 ? 0 : i]);
      TORCH_CHECK(all[i] >= least && all[i] <= kMostOfGeometry, op, name,
                  ": expected integers from ", least, " to ", kMostOfGeometry, ", got ", given);
    }
    return all;
  };
  TORCH_CHECK(groups > 0 && groups <= kMostOfGeometry, op, "groups: expected an integer from 1 to ",
              kMostOfGeometry, ", got ", groups);
  return {for_each_dim("stride", stride, 1), for_each_dim("padding", padding, 0),
          for_each_dim("dilation", dilation, 1), std::move(groups)};
}

void check_conv(const OperatorName& op, const Tensor& input, const Tensor& weight,
                const OptionalTensor& bias_, const ConvGeometry& geometry) {
  const Tensor& bias = value_or_undefined(bias_);
  const c10::SymInt& groups = geometry.groups;
  check_defined(op, "input", input);
  check_like(op, "weight", weight, "input", input);
  if (bias.defined()) {
    check_like(op, "bias", bias, "input", input);
  }
  TORCH_CHECK(!input.is_nested() && !weight.is_nested() && !(bias.defined() && bias.is_nested()),
              op, "expected tensors that are not nested, got a nested one");
  const int64_t dims = weight.dim() - 2;
  TORCH_CHECK(input.dim() == dims + 2 || input.dim() == dims + 1, op, "input: expected ", dims + 1,
              " dimensions (unbatched) or ", dims + 2, " (batched) to match weight of shape ",
              weight.sym_sizes(), ", got shape ", input.sym_sizes());
  const c10::SymInt out_channels = weight.sym_size(0);
  TORCH_CHECK(out_channels >= groups && out_channels % groups == 0, op,
              "weight: expected a first dimension that is a multiple of groups, ", groups,
              ", got shape ", weight.sym_sizes());
  TORCH_CHECK(input.sym_size(-dims - 1) == weight.sym_size(1) * groups, op, "input: expected ",
              weight.sym_size(1) * groups, " channels to match weight of shape ",
              weight.sym_sizes(), " and groups=", groups, ", got shape ", input.sym_sizes());
  if (bias.defined()) {
    TORCH_CHECK(bias.dim() == 1 && bias.sym_size(0) == out_channels, op, "bias: expected shape [",
                out_channels, "] to match weight of shape ", weight.sym_sizes(), ", got shape ",
                bias.sym_sizes());
  }
  for (int64_t i = 0; i < dims; ++i) {
    TORCH_CHECK(weight.sym_size(i + 2) > 0, op, "weight: expected a kernel that is not empty, got ",
                "shape ", weight.sym_sizes());
    const c10::SymInt padded = input.sym_size(i - dims) + 2 * geometry.padding[i];
    const c10::SymInt extent = conv_extent(weight.sym_size(i + 2), geometry.dilation[i]);
    TORCH_CHECK(padded >= extent, op, "input: expected at least ", extent,
                " elements with padding along dimension ", input.dim() + i - dims,
                ", which the kernel spans, got ", padded);
  }
}

void check_conv_backward(const Epilogue& epilogue, const Tensor& grad, const OptionalTensor& saved,
                         const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                         const ConvGeometry& geometry, const FusedMask& mask) {
  const OperatorName op("conv_backward");
  check_conv(op, input, weight, bias, geometry);
  check_defined(op, "grad", grad);
  TORCH_CHECK_TYPE(!mask[3] || epilogue.slope().defined(), op,
                   "slope: expected a tensor where mask asks for its gradient, got None");
  const auto fits = [&](const char* name, const Tensor& t) {
    TORCH_CHECK(has_sizes(t), op, name, ": expected a strided tensor, got ", t.layout());
    check_like(op, name, t, "input", input);
    check_sizes(op, name, t, "the convolution", conv_output_sizes(input, weight, geometry));
  };
  for (const Tensor* t : {&input, &weight}) {
    TORCH_CHECK(has_sizes(*t), op, t == &input ? "input" : "weight",
                ": expected a strided tensor, got ", t->layout());
  }
  if (!is_stand_in(grad)) {
    fits("grad", grad);
  }
  if (!epilogue.is_identity()) {
    check_defined(op, "saved", value_or_undefined(saved));
    fits("saved", *saved);
    if (epilogue.slope().defined()) {
      check_prelu(op, *saved, epilogue.slope(), "slope");
    }
  }
}

c10::SymDimVector conv_output_sizes(const Tensor& input, const Tensor& weight,
                                    const ConvGeometry& geometry) {
  const int64_t dims = weight.dim() - 2;
  c10::SymDimVector sizes;
  if (has_batch(input, weight)) {
    sizes.push_back(input.sym_size(0));
  }
  // PyTorch's convolution of no channels has none.
  const bool no_channels = TORCH_GUARD_OR_FALSE(weight.sym_size(1).sym_eq(0));
  sizes.push_back(no_channels ? c10::SymInt(0) : weight.sym_size(0));
  for (int64_t i = 0; i < dims; ++i) {
    sizes.push_back(conv_output_size(input.sym_size(i - dims), weight.sym_size(i + 2),
                                     geometry.stride[i], geometry.padding[i],
                                     geometry.dilation[i]));
  }
  return sizes;
}

bool fits_conv_output(const Tensor& residual, const Tensor& input, const Tensor& weight,
                      const ConvGeometry& geometry) {
  if (residual.scalar_type() != input.scalar_type() || residual.dim() != input.dim() ||
      residual.layout() != at::kStrided) {
    return false;
  }
  const c10::SymDimVector sizes = conv_output_sizes(input, weight, geometry);
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (residual.sym_size(static_cast<int64_t>(i)) != sizes[i]) {
      return false;
    }
  }
  return true;
}

Tensor torch_conv(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                  const ConvGeometry& g) {
  const bool has_batch = fastact::has_batch(input, weight);
  const Tensor x = batched(input, has_batch);
  const auto run = [&](const auto& conv) {
    return conv(x, weight, bias, g.stride, g.padding, g.dilation, g.groups);
  };
  const auto conv1d = [](const auto&... arguments) { return at::conv1d_symint(arguments...); };
  const auto conv2d = [](const auto&... arguments) { return at::conv2d_symint(arguments...); };
  const auto conv3d = [](const auto&... arguments) { return at::conv3d_symint(arguments...); };
  const Tensor y = weight.dim() == 3 ? run(conv1d) : weight.dim() == 4 ? run(conv2d) : run(conv3d);
  return unbatched(has_sizes(y) ? y.contiguous(conv_memory_format(x, weight)) : y, has_batch);
}

std::tuple<Tensor, Tensor, Tensor> torch_conv_backward(const Tensor& grad, const Tensor& input,
                                                       const Tensor& weight, const ConvGeometry& g,
                                                       std::array<bool, 3> mask) {
  const bool has_batch = fastact::has_batch(input, weight);
  const Tensor x = batched(input, has_batch);
  const c10::SymInt out_channels[] = {weight.sym_size(0)};
  const c10::SymDimVector no_output_padding(g.stride.size(), c10::SymInt(0));
  auto [dx, dw, db] = at::convolution_backward_symint(
      batched(grad, has_batch), x, weight, at::OptionalSymIntArrayRef(out_channels), g.stride,
      g.padding, g.dilation, /*transposed=*/false, no_output_padding, g.groups, mask);
  const at::MemoryFormat format = conv_memory_format(x, weight);
  return {mask[0] ? unbatched(dx.contiguous(format), has_batch) : Tensor(),
          mask[1] ? dw.contiguous(format) : Tensor(), mask[2] ? db : Tensor()};
}

FusedGradients conv_gradients(const Epilogue& epilogue, const Tensor& grad, const Tensor& saved,
                              const Tensor& input, const Tensor& weight,
                              const ConvGeometry& geometry, const FusedMask& mask) {
  const auto [dz, dslope] = epilogue.backward(grad, saved);
  Tensor dx, dw, db;
  if (mask[0] || mask[1] || mask[2]) {
    std::tie(dx, dw, db) =
        torch_conv_backward(dz, input, weight, geometry, {mask[0], mask[1], mask[2]});
  }
  const auto none = [&] { return at::empty({0}, grad.options()); };
  return {mask[0] ? dx : none(), mask[1] ? dw : none(), mask[2] ? db : none(),
          mask[3] ? dslope : none(), mask[4] ? residual_gradient(epilogue, dz) : none()};
}

Tensor compose_conv(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                    c10::SymIntArrayRef dilation, c10::SymInt groups, ActivationName activation,
                    at::ArrayRef<double> parameters, const OptionalTensor& slope,
                    const OptionalTensor& residual, bool) {
  const Epilogue epilogue("conv", activation, parameters, slope);
  const ConvGeometry geometry = conv_geometry("conv", weight, stride, padding, dilation, groups);
  check_conv("conv", input, weight, bias, geometry);
  return epilogue.apply_in_place(
      with_residual(torch_conv(input, weight, bias, geometry), value_or_undefined(residual)));
}

std::tuple<Tensor, Tensor> compose_conv_training(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
    c10::SymInt groups, ActivationName activation, at::ArrayRef<double> parameters,
    const OptionalTensor& slope) {
  const Epilogue epilogue("conv", activation, parameters, slope);
  const ConvGeometry geometry = conv_geometry("conv", weight, stride, padding, dilation, groups);
  check_conv("conv", input, weight, bias, geometry);
  const Tensor z = torch_conv(input, weight, bias, geometry);
  return {epilogue.is_identity() ? z.clone() : epilogue.apply(z), z};
}

FusedGradients compose_conv_backward(const Tensor& grad, const OptionalTensor& saved,
                                     const Tensor& input, const Tensor& weight,
                                     const OptionalTensor& bias, const OptionalTensor& slope,
                                     c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                     c10::SymIntArrayRef dilation, c10::SymInt groups,
                                     ActivationName activation, at::ArrayRef<double> parameters,
                                     FusedMask mask, bool save_output) {
  const Epilogue epilogue("conv_backward", activation, parameters, slope);
  const ConvGeometry geometry =
      conv_geometry("conv_backward", weight, stride, padding, dilation, groups);
  check_conv_backward(epilogue, grad, saved, input, weight, bias, geometry, mask);
  const Tensor& kept = value_or_undefined(saved);
  const bool is_output = epilogue.is_identity() || save_output;
  return conv_gradients(epilogue, grad, is_output ? kept : epilogue.saved_from(kept), input, weight,
                        geometry, mask);
}

Tensor compose_pack_conv(const Tensor& weight, c10::SymIntArrayRef stride,
                         c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                         c10::SymInt groups, std::optional<c10::string_view> winograd) {
  conv_geometry("pack_conv", weight, stride, padding, dilation, std::move(groups));
  winograd_setting("pack_conv", winograd);
  return at::empty({0}, weight.options().dtype(at::kByte));
}

Tensor compose_conv_packed(const Tensor& input, const Tensor& packed, const Tensor& weight,
                           const OptionalTensor& bias, c10::SymIntArrayRef stride,
                           c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                           c10::SymInt groups, ActivationName activation,
                           at::ArrayRef<double> parameters, const OptionalTensor& slope,
                           const OptionalTensor& residual,
                           std::optional<c10::string_view> winograd) {
  winograd_setting("conv_packed", winograd);
  check_packed_conv(packed, weight,
                    conv_geometry("conv_packed", weight, stride, padding, dilation, groups));
  return compose_conv(input, weight, bias, stride, padding, dilation, groups, activation,
                      parameters, slope, residual, true);
}

}  // namespace fastact
