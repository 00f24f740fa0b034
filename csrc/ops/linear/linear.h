// linear with an activation: the checks and the ATen compositions that its autograd and its
// backends share.
#pragma once

#include "core/fused.h"
#include "core/operator.h"

namespace fastact {

// What every operator of the family is called with, by the names of the schemas in ops.cpp.
using LinearSchema = Tensor(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                            ActivationName activation, at::ArrayRef<double> parameters,
                            const OptionalTensor& slope, const OptionalTensor& residual,
                            bool save_output);
// The output, and the value before the activation.
using LinearTrainingSchema = std::tuple<Tensor, Tensor>(const Tensor& input, const Tensor& weight,
                                                        const OptionalTensor& bias,
                                                        ActivationName activation,
                                                        at::ArrayRef<double> parameters,
                                                        const OptionalTensor& slope);
using LinearPackedSchema = Tensor(const Tensor& input, const Tensor& packed, const Tensor& weight,
                                  const OptionalTensor& bias, ActivationName activation,
                                  at::ArrayRef<double> parameters, const OptionalTensor& slope,
                                  const OptionalTensor& residual);
// `saved` is none without an activation; the output where Epilogue::saves_output() and
// `save_output`; else the value before the activation.
using LinearBackwardSchema = FusedGradients(
    const Tensor& grad, const OptionalTensor& saved, const OptionalTensor& input,
    const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& slope,
    ActivationName activation, at::ArrayRef<double> parameters, FusedMask mask, bool save_output);

inline constinit Operator<LinearSchema> linear_op{"linear"};
inline constinit Operator<LinearTrainingSchema> linear_training_op{"linear_training"};
inline constinit Operator<LinearBackwardSchema> linear_backward_op{"linear_backward"};
inline constinit Operator<LinearPackedSchema> linear_packed_op{"linear_packed"};
inline constinit Operator<Tensor(const Tensor& weight)> pack_linear_op{"pack_linear"};

// Raises what torch.nn.functional.linear raises.
void check_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias);
// Raises unless every operand that a wanted gradient needs is there and has the shape that follows
// from `grad`.
void check_linear_backward(const Epilogue& epilogue, const Tensor& grad,
                           const OptionalTensor& saved, const OptionalTensor& input,
                           const OptionalTensor& weight, const OptionalTensor& bias,
                           const FusedMask& mask);
void check_pack_linear(const Tensor& weight);
// Raises unless `packed` is empty or what pack_linear(weight) returns, by its size.
void check_packed(const Tensor& packed, const Tensor& weight);

// Whether a residual has the dtype and the shape of the product, so that it can be added to its
// tiles. Others are promoted and broadcast, as PyTorch's + does it.
bool fits_output(const Tensor& residual, const Tensor& input, const Tensor& weight);

// Of every backend: the matrix product is ATen's, and the activation runs in its output.
LinearTrainingSchema compose_linear_training;
LinearBackwardSchema compose_linear_backward;
LinearSchema compose_linear;

// The CPU kernels.
LinearSchema linear_cpu;
LinearTrainingSchema linear_training_cpu;
LinearBackwardSchema linear_backward_cpu;
LinearPackedSchema linear_packed_cpu;
Tensor pack_linear_cpu(const Tensor& weight);
// As large as the CPU's: fake tensors stand for CPU tensors alone.
Tensor pack_linear_meta(const Tensor& weight);

}  // namespace fastact
