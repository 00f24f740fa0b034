// What follows a product (core/epilogue.h) as the kernels of one call: its forward as stages on the
// product's tiles, its backward with the sums that a bias's and a slope's gradients are.
#pragma once

#include "core/epilogue.h"
#include "cpu/gemm/gemm.h"
#include "cpu/tensors.h"

namespace fastact {

// Holds what the stages read, so it outlives them and cannot be moved.
class BoundEpilogue {
 public:
  // `residual` and `pre_activation`, which gets the value before the activation, are laid out as
  // the result, of `dtype`; undefined: none. The activation is elementwise, or left out.
  BoundEpilogue(const Epilogue& epilogue, at::ScalarType dtype, Along channels,
                const OptionalTensor& bias, const Tensor& residual, const Tensor& pre_activation);
  BoundEpilogue(const BoundEpilogue&) = delete;
  BoundEpilogue& operator=(const BoundEpilogue&) = delete;

  const GemmEpilogue& gemm() const { return gemm_; }
  // Adds softmax over whole rows of the result, `length` elements each.
  void add_softmax(const Epilogue::Softmax& softmax, int64_t length);

 private:
  BorrowedTensor bias_;
  BorrowedTensor slope_;
  AddResidual add_residual_;
  KeepPreActivation keep_pre_activation_;
  Activate activate_;
  MultiplyBySlope multiply_by_slope_;
  SoftmaxArguments softmax_;
  GemmEpilogue gemm_;
};

struct EpilogueGradients {
  Tensor z;      // of the pre-activation
  Tensor bias;   // sums of z over all dimensions but the last
  Tensor slope;  // defined for PReLU
};

// Of a result whose last dimension holds the channels. In one pass where the activation is
// elementwise and its slopes, if there are several, belong to that dimension (`slope_per_channel`).
EpilogueGradients gradients_along_rows(const Epilogue& epilogue, const Tensor& grad,
                                       const OptionalTensor& saved, bool slope_per_channel);

}  // namespace fastact
