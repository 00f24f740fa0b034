// What the operators of the fused families (linear, conv) share: how they name an activation, their
// gradients, what becomes of a residual.
#pragma once

#include <ATen/ops/add.h>

#include <array>
#include <optional>
#include <tuple>

#include "core/checks.h"
#include "core/epilogue.h"

namespace fastact {

using ActivationName = std::optional<c10::string_view>;

// The gradients of input, weight, bias, slope and residual; empty where the mask is false.
using FusedGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using FusedMask = std::array<bool, std::tuple_size_v<FusedGradients>>;

inline Tensor with_residual(const Tensor& product, const Tensor& residual) {
  return residual.defined() ? at::add(product, residual) : product;
}

// The residual's gradient is that before the activation: without an activation a copy of the
// incoming one, which an operator may not return.
inline Tensor residual_gradient(const Epilogue& epilogue, const Tensor& dz) {
  return epilogue.is_identity() ? dz.clone() : dz;
}

}  // namespace fastact
