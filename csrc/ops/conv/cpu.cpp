// conv on the CPU: tensors in, pointers out.
#include <ATen/ops/empty.h>

#include "cpu/coverage.h"
#include "cpu/epilogue.h"
#include "cpu/gemm/gemm.h"
#include "cpu/memory.h"
#include "ops/conv/problem.h"

namespace fastact {
namespace {

// `t` itself where it lies so, else a copy.
BorrowedTensor borrow_in(at::MemoryFormat format, const Tensor& t) {
  if (t.is_contiguous(format)) {
    return BorrowedTensor::borrowed(t);
  }
  Tensor result = empty_in(format, t.sizes(), t.scalar_type());
  fastact::copy(t, result);
  return BorrowedTensor::owned(std::move(result));
}

// Whether the epilogue can run on tiles of a batched output.
bool runs_on_tiles(const Epilogue& epilogue, const Tensor& weight, bool has_batch) {
  const Tensor& slope = epilogue.slope();
  return epilogue.is_elementwise() &&
         (!slope.defined() ||
          (has_kernels(slope) && slope.scalar_type() == weight.scalar_type() && slope.dim() <= 1 &&
           (slope.numel() == 1 || (has_batch && slope.numel() == weight.size(0)))));
}

const Epilogue& no_epilogue() {
  static const Epilogue identity("conv", std::nullopt, {}, std::nullopt);
  return identity;
}

// A packed weight, and the algorithm that reads it; or none, and what decides then.
struct Packed {
  const void* data = nullptr;
  ConvAlgorithm algorithm = ConvAlgorithm::kNone;
  Winograd setting = winograd_setting("conv", std::nullopt);
};

// A convolution of a batched input with an epilogue that runs on tiles. `residual` is undefined or
// has the output's shape and dtype, and `pre_activation` is made where it is asked for.
Tensor convolve(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                const ConvGeometry& geometry, const Epilogue& epilogue, const Tensor& residual,
                Tensor* pre_activation, const Packed& packed) {
  const at::MemoryFormat format = conv_memory_format(x, weight);
  const at::ScalarType dtype = x.scalar_type();
  std::optional<ConvProblem> problem = conv_problem(x.sizes(), format, weight, geometry);
  const ConvAlgorithm algorithm =
      packed.data ? packed.algorithm : algorithm_of(problem, weight, packed.setting);
  Tensor output;
  if (algorithm == ConvAlgorithm::kNone) {
    note_obstacle(weight.dim() == 5 ? "no kernel for convolutions in three dimensions"
                                    : "PyTorch's convolution is as fast for this shape");
    output = torch_conv(x, weight, bias, geometry);
  } else {
    at::DimVector sizes{problem->images, problem->out_channels};
    if (weight.dim() == 4) {
      sizes.push_back(problem->y.output);
    }
    sizes.push_back(problem->x.output);
    output = empty_in(format, sizes, dtype);
  }
  if (pre_activation) {
    *pre_activation = empty_in(format, output.sizes(), dtype);
  }
  const BorrowedTensor added =
      residual.defined() ? borrow_in(format, residual) : BorrowedTensor::owned(Tensor());
  ConvOutput run{table_dtype(dtype),
                 format != at::MemoryFormat::Contiguous,
                 output.size(1),
                 output.numel() / std::max<int64_t>(output.size(0) * output.size(1), 1),
                 output.mutable_data_ptr(),
                 {}};
  const BoundEpilogue bound(epilogue, dtype, ConvOutput::channels_along(run.channels_last), bias,
                            *added, pre_activation ? *pre_activation : Tensor());
  run.stages = bound.gemm().stages;
  if (algorithm == ConvAlgorithm::kNone) {
    run.finish_in_place(output.size(0));
    return output;
  }
  const BorrowedTensor input = borrow_in(format, x);
  problem->input = input->const_data_ptr();
  problem->weight = weight.const_data_ptr();
  problem->bias = bound.gemm().bias;
  problem->packed = packed.data;
  problem->output = run;
  if (!conv(*problem, algorithm)) {
    fastact::copy(torch_conv(x, weight, bias, geometry), output);
    run.finish_in_place(output.size(0));
  }
  return output;
}

// Output and, if `training`, the pre-activation.
std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& bias, const ConvGeometry& geometry,
                                   const Tensor& residual, const Epilogue& epilogue, bool training,
                                   const Packed& packed = {}) {
  const bool has_batch = fastact::has_batch(input, weight);
  const Tensor x = batched(input, has_batch);
  const bool on_tiles = runs_on_tiles(epilogue, weight, has_batch);
  const bool adds = residual.defined() && on_tiles && covered(input, residual) &&
                    fits_conv_output(residual, input, weight, geometry);
  if (!on_tiles || (residual.defined() && !adds)) {
    const Tensor z = with_residual(
        unbatched(convolve(x, weight, bias, geometry, no_epilogue(), Tensor(), nullptr, packed),
                  has_batch),
        residual);
    return training ? std::tuple(epilogue.apply(z), z)
                    : std::tuple(epilogue.apply_in_place(z), Tensor());
  }
  Tensor z;
  const Tensor output =
      convolve(x, weight, bias, geometry, epilogue, adds ? batched(residual, has_batch) : Tensor(),
               training ? &z : nullptr, packed);
  return {unbatched(output, has_batch), training ? unbatched(z, has_batch) : Tensor()};
}

}  // namespace

Tensor conv_cpu(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                c10::SymIntArrayRef dilation, c10::SymInt groups, ActivationName activation,
                at::ArrayRef<double> parameters, const OptionalTensor& slope,
                const OptionalTensor& residual, bool save_output) {
  const Epilogue epilogue("conv", activation, parameters, slope);
  const ConvGeometry geometry = conv_geometry("conv", weight, stride, padding, dilation, groups);
  check_conv("conv", input, weight, bias, geometry);
  if (!covered(input, weight, bias)) {
    return compose_conv(input, weight, bias, stride, padding, dilation, groups, activation,
                        parameters, slope, residual, save_output);
  }
  return std::get<0>(forward(input, weight, bias, geometry, value_or_undefined(residual), epilogue,
                             /*training=*/false));
}

std::tuple<Tensor, Tensor> conv_training_cpu(const Tensor& input, const Tensor& weight,
                                             const OptionalTensor& bias, c10::SymIntArrayRef stride,
                                             c10::SymIntArrayRef padding,
                                             c10::SymIntArrayRef dilation, c10::SymInt groups,
                                             ActivationName activation,
                                             at::ArrayRef<double> parameters,
                                             const OptionalTensor& slope) {
  const Epilogue epilogue("conv", activation, parameters, slope);
  const ConvGeometry geometry = conv_geometry("conv", weight, stride, padding, dilation, groups);
  check_conv("conv", input, weight, bias, geometry);
  if (!covered(input, weight, bias) || epilogue.is_identity()) {
    return compose_conv_training(input, weight, bias, stride, padding, dilation, groups, activation,
                                 parameters, slope);
  }
  return forward(input, weight, bias, geometry, Tensor(), epilogue, /*training=*/true);
}

Tensor conv_packed_cpu(const Tensor& input, const Tensor& packed, const Tensor& weight,
                       const OptionalTensor& bias, c10::SymIntArrayRef stride,
                       c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                       c10::SymInt groups, ActivationName activation,
                       at::ArrayRef<double> parameters, const OptionalTensor& slope,
                       const OptionalTensor& residual, std::optional<c10::string_view> winograd) {
  const ConvGeometry geometry =
      conv_geometry("conv_packed", weight, stride, padding, dilation, groups);
  const Winograd setting = winograd_setting("conv_packed", winograd);
  check_packed_conv(packed, weight, geometry);
  const Epilogue epilogue("conv", activation, parameters, slope);
  check_conv("conv", input, weight, bias, geometry);
  if (!covered(input, weight, bias)) {
    return compose_conv(input, weight, bias, stride, padding, dilation, std::move(groups),
                        activation, parameters, slope, residual, /*save_output=*/true);
  }
  const ConvAlgorithm algorithm = packed_algorithm(packed, weight, geometry);
  const bool reads =
      algorithm != ConvAlgorithm::kNone && input.numel() > 0 && lies_for_engines(weight);
  return std::get<0>(forward(input, weight, bias, geometry, value_or_undefined(residual), epilogue,
                             /*training=*/false,
                             reads ? Packed{packed.const_data_ptr(), algorithm, setting}
                                   : Packed{nullptr, ConvAlgorithm::kNone, setting}));
}

namespace {

// The gradient before the activation and, if they are asked for, those of bias and slope, which
// come of the same pass where the channels lie last.
EpilogueGradients epilogue_gradients(const Epilogue& epilogue, const Tensor& grad,
                                     const OptionalTensor& saved, bool has_batch, bool wants_bias) {
  const Tensor& slope = epilogue.slope();
  const bool by_channel = has_batch && slope.defined() && slope.numel() == grad.size(1);
  const bool along_rows =
      wants_bias && is_defined(saved) && grad.dim() > 2 &&
      (epilogue.activation() ||
       (slope.defined() && has_kernels(slope) && slope.is_contiguous() &&
        slope.scalar_type() == grad.scalar_type() && (slope.numel() == 1 || by_channel)));
  const int64_t channel = has_batch ? 1 : 0;
  const auto last = [&](const Tensor& t) { return t.movedim(channel, -1); };
  if (along_rows && covered(grad, saved) && last(grad).is_contiguous() &&
      last(*saved).is_contiguous()) {
    EpilogueGradients own = gradients_along_rows(epilogue, last(grad), last(*saved), by_channel);
    own.z = own.z.movedim(-1, channel);
    return own;
  }
  auto [z, dslope] = epilogue.backward(grad, saved ? *saved : Tensor());
  return {std::move(z), {}, std::move(dslope)};
}

// The input's gradient, of a batch, is a convolution with the weight's transpose turned round, or
// undefined where the engines have none for it.
Tensor input_gradient(const Tensor& dz, const Tensor& weight, const ConvGeometry& geometry) {
  ConvGeometry turned = geometry;
  for (std::size_t i = 0; i < geometry.stride.size(); ++i) {
    turned.padding[i] =
        geometry.dilation[i] * (weight.size(static_cast<int64_t>(i) + 2) - 1) - geometry.padding[i];
    if (geometry.stride[i] != 1 || turned.padding[i] < 0) {
      return {};
    }
  }
  const int64_t groups = geometry.groups.guard_int(__FILE__, __LINE__);
  const bool channels_last = !weight.is_contiguous();
  if (channels_last && !weight.is_contiguous(at::MemoryFormat::ChannelsLast)) {
    return {};
  }
  at::DimVector sizes(weight.sizes().begin(), weight.sizes().end());
  sizes[0] = weight.size(1) * groups;
  sizes[1] = weight.size(0) / groups;
  Tensor transpose = empty(sizes, weight.scalar_type());
  const auto problem =
      conv_problem(dz.sizes(), conv_memory_format(dz, transpose), transpose, turned);
  if (algorithm_of(problem, transpose, winograd_setting("conv_backward", std::nullopt)) ==
      ConvAlgorithm::kNone) {
    return {};
  }
  turn_weight(problem->dtype, weight.const_data_ptr(), channels_last, groups, sizes[1],
              weight.size(1), weight.numel() / (weight.size(0) * weight.size(1)),
              transpose.mutable_data_ptr());
  return convolve(dz, transpose, std::nullopt, turned, no_epilogue(), Tensor(), nullptr, {});
}

// The gradient of a weight of single pixels, channels last: a product over all pixels. Undefined
// for other weights.
Tensor pointwise_weight_gradient(const Tensor& dz, const Tensor& x, const Tensor& weight,
                                 const ConvGeometry& geometry) {
  const auto last = [](const Tensor& t) { return t.movedim(1, -1); };
  const bool fits = geometry.groups == 1 && dz.numel() > 0 &&
                    weight.numel() == weight.size(0) * weight.size(1) &&
                    dz.sizes().slice(2) == x.sizes().slice(2) && last(dz).is_contiguous() &&
                    last(x).is_contiguous();
  if (!fits) {
    return {};
  }
  const int64_t k = weight.size(0);
  const int64_t c = weight.size(1);
  Tensor dw = empty(weight.sizes(), weight.scalar_type());
  gemm({table_dtype(weight.scalar_type()),
        k,
        c,
        dz.numel() / k,
        {dz.const_data_ptr(), 1, k},
        {x.const_data_ptr(), c, 1},
        nullptr,
        dw.mutable_data_ptr(),
        c,
        {}});
  return dw;
}

}  // namespace

FusedGradients conv_backward_cpu(const Tensor& grad, const OptionalTensor& saved,
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
  if (is_stand_in(grad) || !covered(grad, input, weight) || input.numel() == 0) {
    return compose_conv_backward(grad, saved, input, weight, bias, slope, stride, padding, dilation,
                                 groups, activation, parameters, mask, save_output);
  }
  const bool has_batch = fastact::has_batch(input, weight);
  const bool applies = !save_output && !epilogue.is_identity() && epilogue.saves_output();
  const auto [z, dbias, dslope] = epilogue_gradients(
      epilogue, grad, applies ? OptionalTensor(epilogue.apply(*saved)) : saved, has_batch, mask[2]);
  const Tensor x = batched(input, has_batch);
  const Tensor dz = batched(z, has_batch);
  const at::MemoryFormat format = conv_memory_format(x, weight);
  Tensor dx = mask[0] ? input_gradient(dz, weight, geometry) : Tensor();
  Tensor dw = mask[1] ? pointwise_weight_gradient(dz, x, weight, geometry) : Tensor();
  Tensor db = mask[2] ? dbias : Tensor();
  const std::array<bool, 3> rest{mask[0] && !dx.defined(), mask[1] && !dw.defined(),
                                 mask[2] && !db.defined()};
  if (rest[0] || rest[1] || rest[2]) {
    const auto [x_rest, w_rest, b_rest] = torch_conv_backward(dz, x, weight, geometry, rest);
    dx = rest[0] ? x_rest : dx;
    dw = rest[1] ? w_rest : dw;
    db = rest[2] ? b_rest : db;
  }
  const auto none = [&] { return empty({0}, grad.scalar_type()); };
  return {mask[0] ? unbatched(dx.contiguous(format), has_batch) : none(),
          mask[1] ? dw.contiguous(format) : none(), mask[2] ? db : none(),
          mask[3] ? dslope : none(), mask[4] ? residual_gradient(epilogue, z) : none()};
}

}  // namespace fastact
