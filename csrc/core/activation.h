// An activation as torch sees it: one type-erased row, made from math/activations.h and
// autograd/compositions.h. Fused operators look it up by name.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <string_view>

namespace torch {
class Library;
}

namespace fastact {

using at::Tensor;

constexpr int kMaxParameters = 3;

// Every function takes the parameters as an array of `num_parameters` doubles.
struct Activation {
  int index;  // position in math/activations.h's list, and in the kernel tables
  const char* name;
  int num_parameters;
  std::array<const char*, kMaxParameters> parameter_names;
  std::array<double, kMaxParameters> parameter_defaults;
  int cost;  // cycles per 16 fp32 elements
  bool (*saves_output)(const double* parameters);
  bool keeps_strides;  // the output's strides are the input's, else it is contiguous

  // Raises what PyTorch raises for a parameter out of range.
  void (*check)(const double* parameters);
  // The differentiable ATen composition; backward reads the output or the input (saves_output).
  Tensor (*compose)(const Tensor& self, const double* parameters);
  Tensor (*compose_backward)(const Tensor& grad, const Tensor& saved, const double* parameters);

  // The operators fastact::NAME, NAME_ and NAME_backward, reached through the dispatcher.
  Tensor call(const Tensor& self, const double* parameters) const;
  Tensor& call_(Tensor& self, const double* parameters) const;
  Tensor call_backward(const Tensor& grad, const Tensor& saved, const double* parameters) const;
  Tensor redispatch(c10::DispatchKeySet keys, const Tensor& self, const double* parameters) const;
  Tensor& redispatch_(c10::DispatchKeySet keys, Tensor& self, const double* parameters) const;
  Tensor redispatch_backward(c10::DispatchKeySet keys, const Tensor& grad, const Tensor& saved,
                             const double* parameters) const;
};

// Of NAME_backward; raises where grad and saved do not fit each other.
void check_unary_backward(const Activation& activation, const Tensor& grad, const Tensor& saved);

at::ArrayRef<Activation> activations();
// Null where the registry has no such name.
const Activation* find_activation(std::string_view name);

// The dtypes that the kernels compute; every other one runs as the ATen composition.
inline bool is_kernel_dtype(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 ||
         dtype == at::kHalf;
}

// Type-erased kernels of the three operators of a unary activation.
struct UnaryKernels {
  Tensor (*forward)(const Activation&, const Tensor& self, const double* parameters);
  Tensor& (*inplace)(const Activation&, Tensor& self, const double* parameters);
  Tensor (*backward)(const Activation&, const Tensor& grad, const Tensor& saved,
                     const double* parameters);
};
// The same for dispatch keys whose kernels pass the remaining keys on.
struct KeyedUnaryKernels {
  Tensor (*forward)(c10::DispatchKeySet, const Activation&, const Tensor& self,
                    const double* parameters);
  Tensor& (*inplace)(c10::DispatchKeySet, const Activation&, Tensor& self,
                     const double* parameters);
  Tensor (*backward)(c10::DispatchKeySet, const Activation&, const Tensor& grad,
                     const Tensor& saved, const double* parameters);
};

// Registers them for every activation; null ones are left out.
void implement_unary(torch::Library& m, const UnaryKernels& kernels);
void implement_unary(torch::Library& m, const KeyedUnaryKernels& kernels);

}  // namespace fastact
