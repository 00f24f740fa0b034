// Softmax and log_softmax: the operators as C++ functions, and what their autograd and their
// backends share.
#pragma once

#include <ATen/core/Tensor.h>

#include "core/checks.h"

namespace fastact {

using at::Tensor;

// The dispatcher's fastact::softmax (softmax(scale * self)), fastact::log_softmax and their
// backward.
Tensor softmax(const Tensor& self, int64_t dim, double scale);
Tensor log_softmax(const Tensor& self, int64_t dim);

// dself = scale * output * (grad - sum(grad * output)), or grad - exp(output) * sum(grad).
Tensor softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim, double scale);
Tensor log_softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim);

// The ATen compositions.
Tensor compose_softmax(const Tensor& self, int64_t dim, double scale);
Tensor compose_softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim,
                                double scale);
Tensor compose_log_softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim);

// Each wraps `dim`, and raises where the arguments do not fit.
int64_t check_softmax_backward(const OperatorName& op, const Tensor& grad, const Tensor& output,
                               int64_t dim);

// masked_softmax: softmax(scale * self + mask), or of the lower triangle of the last two
// dimensions.
int64_t check_masked_softmax(const Tensor& self, const OptionalTensor& mask, int64_t dim,
                             bool is_causal);
Tensor compose_masked_softmax(const Tensor& self, const OptionalTensor& mask, int64_t dim,
                              double scale, bool is_causal);

// softmax_backward, but 0 where an element takes no part: where a boolean mask is false, or above
// the diagonal. (The output cannot tell: it is NaN in rows that take no element or hold a NaN.)
int64_t check_masked_softmax_backward(const Tensor& grad, const Tensor& output,
                                      const OptionalTensor& mask, int64_t dim, bool is_causal);
Tensor compose_masked_softmax_backward(const Tensor& grad, const Tensor& output,
                                       const OptionalTensor& mask, int64_t dim, double scale,
                                       bool is_causal);

}  // namespace fastact
