// A convolution of tensors as cpu/conv/ describes it.
#pragma once

#include <optional>

#include "cpu/conv/conv.h"
#include "ops/conv/conv.h"

namespace fastact {

// The shapes, without pointers, for an input of these sizes, batch included, in a memory format.
// None: of three dimensions, of another dtype than kernels compute, or empty.
std::optional<ConvProblem> conv_problem(at::IntArrayRef sizes, at::MemoryFormat format,
                                        const Tensor& weight, const ConvGeometry& geometry);

// Whether a weight lies in one of the orders that the engines read.
bool lies_for_engines(const Tensor& weight);

// Of a weight that is not packed; kNone where PyTorch computes.
ConvAlgorithm algorithm_of(const std::optional<ConvProblem>& problem, const Tensor& weight,
                           Winograd setting);

// That which reads what pack_conv() returned, by its size; kNone where that is empty.
ConvAlgorithm packed_algorithm(const Tensor& packed, const Tensor& weight,
                               const ConvGeometry& geometry);

// Uninitialised, in a memory format.
Tensor empty_in(at::MemoryFormat format, at::IntArrayRef sizes, at::ScalarType dtype);

}  // namespace fastact
