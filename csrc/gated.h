// The gated linear units: one row each, shared by their autograd and their backends.
#pragma once

#include <ATen/core/Tensor.h>

#include "cpu/kernels/tables.h"

namespace torch {
class Library;
}

namespace fastact {

using at::Tensor;

// By gate.
constexpr const char* kGatedUnitNames[kNumGates] = {"glu", "swiglu", "geglu", "reglu"};

struct GatedUnit {
  const char* name;
  Gate gate;
  bool gate_first;                      // act(a) * b, a the first half; false: a * act(b)
  Tensor (*activation)(const Tensor&);  // the gate's ATen composition
};

at::ArrayRef<GatedUnit> gated_units();

// `dim` made non-negative; raises what torch.nn.functional.glu raises for a size that is odd.
int64_t check_gated(const GatedUnit& unit, const Tensor& self, int64_t dim);
// Of NAME_backward.
int64_t check_gated_backward(const GatedUnit& unit, const Tensor& grad, const Tensor& self,
                             int64_t dim);

// Differentiable to any order.
Tensor compose_gated(const GatedUnit& unit, const Tensor& self, int64_t dim);
Tensor compose_gated_backward(const GatedUnit& unit, const Tensor& grad, const Tensor& self,
                              int64_t dim);

using GatedForward = Tensor (*)(const GatedUnit&, const Tensor& self, int64_t dim);
using GatedBackward = Tensor (*)(const GatedUnit&, const Tensor& grad, const Tensor& self,
                                 int64_t dim);
// Registers kernels for every unit.
void implement_gated(torch::Library& m, GatedForward forward, GatedBackward backward);

}  // namespace fastact
