// The gated linear units: one row each, shared by their autograd and their backends.
#pragma once

#include <ATen/core/Tensor.h>

#include "core/operator.h"
#include "cpu/kernels/kernel_table.h"

namespace fastact {

using at::Tensor;

using GatedSchema = Tensor(const Tensor& self, int64_t dim);
using GatedBackwardSchema = Tensor(const Tensor& grad, const Tensor& self, int64_t dim);
struct GatedOperators {
  Operator<GatedSchema> forward;
  Operator<GatedBackwardSchema> backward;

  constexpr GatedOperators(const char* forward, const char* backward)
      : forward(forward), backward(backward) {}
};

// By gate.
inline constinit GatedOperators gated_ops[kNumGates] = {{"glu", "glu_backward"},
                                                        {"swiglu", "swiglu_backward"},
                                                        {"geglu", "geglu_backward"},
                                                        {"reglu", "reglu_backward"}};

struct GatedUnit {
  Gate gate;
  bool gate_first;                      // act(a) * b, a the first half; false: a * act(b)
  Tensor (*activation)(const Tensor&);  // the gate's ATen composition

  const GatedOperators& ops() const { return gated_ops[gate]; }
  const char* name() const { return ops().forward.name(); }
};

extern const GatedUnit gated_units[kNumGates];  // by gate

// `dim` made non-negative; raises what torch.nn.functional.glu raises for a size that is odd.
int64_t check_gated(const GatedUnit& unit, const Tensor& self, int64_t dim);
// Of NAME_backward.
int64_t check_gated_backward(const GatedUnit& unit, const Tensor& grad, const Tensor& self,
                             int64_t dim);

// Differentiable to any order.
Tensor compose_gated(const GatedUnit& unit, const Tensor& self, int64_t dim);
Tensor compose_gated_backward(const GatedUnit& unit, const Tensor& grad, const Tensor& self,
                              int64_t dim);

// The CPU kernels.
Tensor gated_cpu(const GatedUnit& unit, const Tensor& self, int64_t dim);
Tensor gated_backward_cpu(const GatedUnit& unit, const Tensor& grad, const Tensor& self,
                          int64_t dim);

}  // namespace fastact
