// PReLU: what its autograd, its backends and fused operators share.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "core/checks.h"
#include "core/operator.h"

namespace fastact {

using at::Tensor;

inline constinit Operator<Tensor(const Tensor& self, const Tensor& weight)> prelu_op{"prelu"};
inline constinit Operator<std::tuple<Tensor, Tensor>(const Tensor& grad, const Tensor& self,
                                                     const Tensor& weight)>
    prelu_backward_op{"prelu_backward"};

// Raises what torch.prelu raises; `op` and `name`, the weight's, are named in the message.
void check_prelu(const OperatorName& op, const Tensor& self, const Tensor& weight,
                 const char* name = "weight");
void check_prelu_backward(const Tensor& grad, const Tensor& self, const Tensor& weight);

// `weight` as a view that broadcasts against `self`: its elements lie along dimension 1.
Tensor prelu_weight_like(const Tensor& self, const Tensor& weight);

std::tuple<Tensor, Tensor> compose_prelu_backward(const Tensor& grad, const Tensor& self,
                                                  const Tensor& weight);

// The CPU kernels.
Tensor prelu_cpu(const Tensor& self, const Tensor& weight);
std::tuple<Tensor, Tensor> prelu_backward_cpu(const Tensor& grad, const Tensor& self,
                                              const Tensor& weight);

}  // namespace fastact
