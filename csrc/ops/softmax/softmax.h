// Softmax, log_softmax and masked_softmax: what their autograd, their backends and fused operators
// share.
#pragma once

#include <ATen/core/Tensor.h>

#include "core/checks.h"
#include "core/operator.h"

namespace fastact {

using at::Tensor;

using SoftmaxSchema = Tensor(const Tensor& self, int64_t dim, double scale);
using SoftmaxBackwardSchema = Tensor(const Tensor& grad, const Tensor& output, int64_t dim,
                                     double scale);
using LogSoftmaxSchema = Tensor(const Tensor& self, int64_t dim);
using LogSoftmaxBackwardSchema = Tensor(const Tensor& grad, const Tensor& output, int64_t dim);
using MaskedSoftmaxSchema = Tensor(const Tensor& self, const OptionalTensor& mask, int64_t dim,
                                   double scale, bool is_causal);
using MaskedSoftmaxBackwardSchema = Tensor(const Tensor& grad, const Tensor& output,
                                           const OptionalTensor& mask, int64_t dim, double scale,
                                           bool is_causal);

// softmax(scale * self), and dself = scale * output * (grad - sum(grad * output)).
inline constinit Operator<SoftmaxSchema> softmax_op{"softmax"};
inline constinit Operator<SoftmaxBackwardSchema> softmax_backward_op{"softmax_backward"};
// dself = grad - exp(output) * sum(grad)
inline constinit Operator<LogSoftmaxSchema> log_softmax_op{"log_softmax"};
inline constinit Operator<LogSoftmaxBackwardSchema> log_softmax_backward_op{"log_softmax_backward"};
// softmax(scale * self + mask), or of the lower triangle of the last two dimensions. The gradient
// is 0 where an element takes no part: where a boolean mask is false, or above the diagonal. (The
// output cannot tell: it is NaN in rows that take no element or hold a NaN.)
inline constinit Operator<MaskedSoftmaxSchema> masked_softmax_op{"masked_softmax"};
inline constinit Operator<MaskedSoftmaxBackwardSchema> masked_softmax_backward_op{
    "masked_softmax_backward"};

// The ATen compositions.
SoftmaxSchema compose_softmax;
SoftmaxBackwardSchema compose_softmax_backward;
LogSoftmaxBackwardSchema compose_log_softmax_backward;
MaskedSoftmaxSchema compose_masked_softmax;
MaskedSoftmaxBackwardSchema compose_masked_softmax_backward;

// The CPU kernels.
SoftmaxSchema softmax_cpu;
SoftmaxBackwardSchema softmax_backward_cpu;
LogSoftmaxSchema log_softmax_cpu;
LogSoftmaxBackwardSchema log_softmax_backward_cpu;
MaskedSoftmaxSchema masked_softmax_cpu;
MaskedSoftmaxBackwardSchema masked_softmax_backward_cpu;

// Each wraps `dim`, and raises where the arguments do not fit.
int64_t check_softmax_backward(const OperatorName& op, const Tensor& grad, const Tensor& output,
                               int64_t dim);
int64_t check_masked_softmax(const Tensor& self, const OptionalTensor& mask, int64_t dim,
                             bool is_causal);
int64_t check_masked_softmax_backward(const Tensor& grad, const Tensor& output,
                                      const OptionalTensor& mask, int64_t dim, bool is_causal);

}  // namespace fastact
