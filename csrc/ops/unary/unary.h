// The CPU kernels of the unary activations, for their registration.
#pragma once

#include "core/activation.h"

namespace fastact {

Tensor unary_cpu(const Activation& activation, const Tensor& self, const double* parameters);
Tensor& unary_inplace_cpu(const Activation& activation, Tensor& self, const double* parameters);
Tensor unary_backward_cpu(const Activation& activation, const Tensor& grad, const Tensor& saved,
                          const double* parameters);

}  // namespace fastact
