// Softmax and log_softmax: the operators as C++ functions, and what their autograd and their
// backends share.
#pragma once

#include <ATen/core/Tensor.h>

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

}  // namespace fastact
