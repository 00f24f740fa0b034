// What follows the matrix product of a fused operator (linear; later convolution and recurrent
// cells): nothing, a registry activation, PReLU with its slope, or softmax over one dimension.
// Fused operators hold one of these and never list activations.
#pragma once

#include "core/activation.h"

namespace fastact {

class Epilogue {
 public:
  // The schema's arguments: a registry name, "prelu" (with `slope`), "softmax" or "log_softmax"
  // (parameters: dim, and softmax's scale); parameters in the registry's order, none of them
  // meaning all defaults. `op` is named in errors.
  Epilogue(const char* op, std::optional<std::string_view> activation,
           at::ArrayRef<double> parameters, const std::optional<Tensor>& slope);

  bool is_identity() const { return kind_ == Kind::kIdentity; }
  // Whether each element of the output depends on one of the input.
  bool is_elementwise() const { return kind_ != Kind::kSoftmax && kind_ != Kind::kLogSoftmax; }

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
  Softmax softmax() const { return {dim_, scale_, kind_ == Kind::kLogSoftmax}; }

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
  enum class Kind { kIdentity, kUnary, kPrelu, kSoftmax, kLogSoftmax };
  Kind kind_ = Kind::kIdentity;
  const Activation* activation_ = nullptr;
  std::array<double, kMaxParameters> parameters_{};
  int64_t dim_ = -1;
  double scale_ = 1;
  Tensor slope_;
};

}  // namespace fastact
