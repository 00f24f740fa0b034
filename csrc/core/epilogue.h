// What follows the matrix product of a fused operator (linear; later convolution and recurrent
// cells): nothing, a registry activation, PReLU with its slope, or softmax over one dimension.
// Fused operators hold one of these and never list activations.
#pragma once

#include "core/activation.h"

namespace fastact {

struct EpilogueKind;  // a row of the table in epilogue.cpp

class Epilogue {
 public:
  // The schema's arguments: a registry name, with `slope` where that takes one; parameters in the
  // registry's order, a dimension among them, none of them meaning all defaults. `op` is named in
  // errors.
  Epilogue(const char* op, std::optional<std::string_view> activation,
           at::ArrayRef<double> parameters, const std::optional<Tensor>& slope);
  // Where only facts about an activation are asked for: without the slope that it may take.
  static Epilogue without_slope(const char* op, std::optional<std::string_view> activation,
                                at::ArrayRef<double> parameters);

  bool is_identity() const;
  // Whether each element of the output depends on one of the input.
  bool is_elementwise() const;

  // The registry activation, or null; PReLU's slope, or undefined.
  const Activation* activation() const { return activation_; }
  const double* parameters() const { return parameters_.data(); }
  const Tensor& slope() const { return slope_; }
  // softmax(scale * z, dim) or its logarithm; only where it is one of them.
  struct Softmax {
    int64_t dim;
    double scale;
    bool log;
  };
  Softmax softmax() const;

  // Which tensor backward() reads: the output, or the value before the activation.
  bool saves_output() const;
  // That tensor from the value before the activation.
  Tensor saved_from(const Tensor& z) const { return saves_output() ? apply(z) : z; }

  // The activation by fastact's operators, in the memory of `z` where it can be: `z` must be fresh.
  Tensor apply_in_place(Tensor z) const;
  Tensor apply(const Tensor& z) const;
  // The same as a differentiable ATen composition.
  Tensor compose(const Tensor& z) const;

  struct Gradients {
    Tensor z;
    Tensor slope;  // defined for PReLU
  };
  Gradients backward(const Tensor& grad, const Tensor& saved) const;

 private:
  Epilogue(const char* op, std::optional<std::string_view> activation,
           at::ArrayRef<double> parameters);

  const EpilogueKind* kind_;
  const Activation* activation_ = nullptr;
  std::array<double, kMaxParameters> parameters_{};
  Tensor slope_;
};

}  // namespace fastact
