// conv with an activation, in 1, 2 or 3 dimensions by the weight's: what its autograd and its
// backends share.
#pragma once

#include "core/fused.h"
#include "core/operator.h"
#include "cpu/conv/conv.h"

namespace fastact {

// What every operator of the family is called with, by the names of the schemas. A stride, padding
// or dilation has one element for all dimensions, or one for each.
using ConvSchema = Tensor(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                          c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                          c10::SymIntArrayRef dilation, c10::SymInt groups,
                          ActivationName activation, at::ArrayRef<double> parameters,
                          const OptionalTensor& slope, const OptionalTensor& residual,
                          bool save_output);
// The output, and the value before the activation.
using ConvTrainingSchema = std::tuple<Tensor, Tensor>(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
    c10::SymInt groups, ActivationName activation, at::ArrayRef<double> parameters,
    const OptionalTensor& slope);
// `saved` as linear_backward's (ops/linear/linear.h). Both operands are there: each gives the other
// one's gradient its shape.
using ConvBackwardSchema = FusedGradients(
    const Tensor& grad, const OptionalTensor& saved, const Tensor& input, const Tensor& weight,
    const OptionalTensor& bias, const OptionalTensor& slope, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
    ActivationName activation, at::ArrayRef<double> parameters, FusedMask mask, bool save_output);
using PackConvSchema = Tensor(const Tensor& weight, c10::SymIntArrayRef stride,
                              c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                              c10::SymInt groups, std::optional<c10::string_view> winograd);
using ConvPackedSchema = Tensor(const Tensor& input, const Tensor& packed, const Tensor& weight,
                                const OptionalTensor& bias, c10::SymIntArrayRef stride,
                                c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                                c10::SymInt groups, ActivationName activation,
                                at::ArrayRef<double> parameters, const OptionalTensor& slope,
                                const OptionalTensor& residual,
                                std::optional<c10::string_view> winograd);

inline constinit Operator<ConvSchema> conv_op{"conv"};
inline constinit Operator<ConvTrainingSchema> conv_training_op{"conv_training"};
inline constinit Operator<ConvBackwardSchema> conv_backward_op{"conv_backward"};
inline constinit Operator<PackConvSchema> pack_conv_op{"pack_conv"};
inline constinit Operator<ConvPackedSchema> conv_packed_op{"conv_packed"};

// The setting of that name, or without one the process's.
Winograd winograd_setting(const OperatorName& op, std::optional<c10::string_view> name);
void set_winograd(c10::string_view name);
std::string winograd();

// A stride, padding or dilation as at::convolution takes it.
struct ConvGeometry {
  c10::SymDimVector stride;
  c10::SymDimVector padding;
  c10::SymDimVector dilation;
  c10::SymInt groups;
};
// Raises unless they fit the weight.
ConvGeometry conv_geometry(const OperatorName& op, const Tensor& weight, c10::SymIntArrayRef stride,
                           c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                           c10::SymInt groups);

// Raises what torch.nn.functional.conv1d, conv2d or conv3d raises.
void check_conv(const OperatorName& op, const Tensor& input, const Tensor& weight,
                const OptionalTensor& bias, const ConvGeometry& geometry);
// Raises unless `grad` and `saved` have the output's shape and the dtype of the operands.
void check_conv_backward(const Epilogue& epilogue, const Tensor& grad, const OptionalTensor& saved,
                         const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                         const ConvGeometry& geometry, const FusedMask& mask);
// Raises unless `packed` is empty or what pack_conv() returns with one of the settings, by its
// size.
void check_packed_conv(const Tensor& packed, const Tensor& weight, const ConvGeometry& geometry);

// Along one dimension: what a kernel spans of the input, and the output's size.
template <class N>
N conv_extent(const N& kernel, const N& dilation) {
  return dilation * (kernel - 1) + 1;
}
template <class N>
N conv_output_size(const N& input, const N& kernel, const N& stride, const N& padding,
                   const N& dilation) {
  return (input + padding * 2 - conv_extent(kernel, dilation)) / stride + 1;
}

// Of operands that fit: the output's shape, and the memory format that PyTorch gives it. (That is
// inline for the bindings, which see no symbol of this library.)
c10::SymDimVector conv_output_sizes(const Tensor& input, const Tensor& weight,
                                    const ConvGeometry& geometry);
inline at::MemoryFormat conv_memory_format(const Tensor& batched_input, const Tensor& weight) {
  if (TORCH_GUARD_OR_FALSE(batched_input.sym_numel().sym_eq(0))) {
    return at::MemoryFormat::Contiguous;
  }
  const auto is = [&](at::MemoryFormat format) {
    return batched_input.suggest_memory_format() == format ||
           weight.suggest_memory_format() == format;
  };
  if (weight.dim() == 4 && is(at::MemoryFormat::ChannelsLast)) {
    return at::MemoryFormat::ChannelsLast;
  }
  if (weight.dim() == 5 && weight.scalar_type() == at::kFloat &&
      is(at::MemoryFormat::ChannelsLast3d)) {
    return at::MemoryFormat::ChannelsLast3d;
  }
  return at::MemoryFormat::Contiguous;
}

inline bool has_batch(const Tensor& input, const Tensor& weight) {
  return input.dim() == weight.dim();
}
inline Tensor batched(const Tensor& t, bool has_batch) { return has_batch ? t : t.unsqueeze(0); }
inline Tensor unbatched(const Tensor& t, bool has_batch) { return has_batch ? t : t.squeeze(0); }

// Whether a residual has the dtype and the shape of the output, so that it can be added in place.
// Others are promoted and broadcast, as PyTorch's + does it.
bool fits_conv_output(const Tensor& residual, const Tensor& input, const Tensor& weight,
                      const ConvGeometry& geometry);

// PyTorch's convolution, differentiable, in the memory format of conv_memory_format().
Tensor torch_conv(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                  const ConvGeometry& geometry);
// The gradients of at::convolution_backward, differentiable; undefined where not wanted.
std::tuple<Tensor, Tensor, Tensor> torch_conv_backward(const Tensor& grad, const Tensor& input,
                                                       const Tensor& weight,
                                                       const ConvGeometry& geometry,
                                                       std::array<bool, 3> mask);
// All gradients, of differentiable operators, so that every higher order follows. `saved` is what
// the activation's backward reads.
FusedGradients conv_gradients(const Epilogue& epilogue, const Tensor& grad, const Tensor& saved,
                              const Tensor& input, const Tensor& weight,
                              const ConvGeometry& geometry, const FusedMask& mask);

// Of every backend: the convolution is ATen's, and the activation runs in its output.
ConvSchema compose_conv;
ConvTrainingSchema compose_conv_training;
ConvBackwardSchema compose_conv_backward;
PackConvSchema compose_pack_conv;
ConvPackedSchema compose_conv_packed;

// The CPU kernels.
ConvSchema conv_cpu;
ConvTrainingSchema conv_training_cpu;
ConvBackwardSchema conv_backward_cpu;
PackConvSchema pack_conv_cpu;
ConvPackedSchema conv_packed_cpu;
// As large as the CPU's: fake tensors stand for CPU tensors alone.
PackConvSchema pack_conv_meta;

}  // namespace fastact
