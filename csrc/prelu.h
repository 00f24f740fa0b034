// PReLU: the checks and the ATen composition that its autograd and its backends share.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "core/checks.h"

namespace fastact {

using at::Tensor;

// The dispatcher's fastact::prelu and fastact::prelu_backward.
Tensor prelu(const Tensor& self, const Tensor& weight);
std::tuple<Tensor, Tensor> prelu_backward(const Tensor& grad, const Tensor& self,
                                          const Tensor& weight);

// Raises what torch.prelu raises; `op` and `name`, the weight's, are named in the message.
void check_prelu(const OperatorName& op, const Tensor& self, const Tensor& weight,
                 const char* name = "weight");
void check_prelu_backward(const Tensor& grad, const Tensor& self, const Tensor& weight);

// `weight` as a view that broadcasts against `self`: its elements lie along dimension 1.
Tensor prelu_weight_like(const Tensor& self, const Tensor& weight);

std::tuple<Tensor, Tensor> compose_prelu_backward(const Tensor& grad, const Tensor& self,
                                                  const Tensor& weight);

}  // namespace fastact
