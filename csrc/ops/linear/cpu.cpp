// linear on the CPU: the matrix product of cpu/gemm/ with the activation on its tiles.
#include <ATen/WrapDimUtils.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/epilogue.h"
#include "cpu/memory.h"
#include "ops/linear/linear.h"

namespace fastact {
namespace {

bool linear_covered(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                    const Tensor& slope) {
  if (!covered(input, weight, bias, slope)) {
    return false;
  }
  if (weight.dim() != 2) {
    return not_covered(c10::str("a weight of ", weight.dim(), " dimension"));
  }
  if (is_defined(bias) && (bias->dim() != 1 || bias->numel() != weight.size(0))) {
    return not_covered(c10::str("a bias of shape ", bias->sizes()));
  }
  // They are those of dimension 1.
  if (slope.defined() && slope.numel() != 1 &&
      (slope.dim() > 1 || input.dim() != 2 || slope.numel() != weight.size(0))) {
    return not_covered("slopes of prelu that do not lie along the last dimension");
  }
  return true;
}

// Whether the activation is a softmax over the last dimension.
bool along_rows(const Epilogue& epilogue, const Tensor& output) {
  return !epilogue.is_elementwise() &&
         at::maybe_wrap_dim(epilogue.softmax().dim, output.dim()) == output.dim() - 1;
}

// Output and, if `training`, the pre-activation.
std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& bias, const OptionalTensor& residual_,
                                   const Epilogue& epilogue, const void* packed, bool training) {
  const int64_t n = weight.size(0);
  at::DimVector sizes(input.sizes().begin(), input.sizes().end());
  sizes.back() = n;
  const MatrixView x(input);
  const MatrixView w(weight);
  Tensor output = empty(sizes, input.scalar_type());
  Tensor pre_activation;
  if (training) {
    pre_activation = empty(sizes, input.scalar_type());
  }
  const BorrowedTensor residual =
      is_defined(residual_) ? borrow_contiguous(*residual_) : BorrowedTensor::owned(Tensor());
  BoundEpilogue bound(epilogue, input.scalar_type(), Along::kColumns, bias, *residual,
                      pre_activation);
  const bool by_rows = along_rows(epilogue, output);
  if (by_rows) {
    bound.add_softmax(epilogue.softmax(), n);
  }
  gemm({table_dtype(input.scalar_type()), x.rows, n, input.size(-1), x.operand, w.transposed(),
        packed, output.mutable_data_ptr(), n, bound.gemm()});
  if (!epilogue.is_elementwise() && !by_rows) {
    output = epilogue.apply(output);
  }
  return {std::move(output), std::move(pre_activation)};
}

// A residual that cannot be added to the tiles is added to the product.
Tensor inference(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                 const OptionalTensor& residual, const Epilogue& epilogue, const void* packed) {
  if (!is_defined(residual) ||
      (covered(input, *residual) && fits_output(*residual, input, weight))) {
    return std::get<0>(
        forward(input, weight, bias, residual, epilogue, packed, /*training=*/false));
  }
  static const Epilogue identity("linear", std::nullopt, {}, std::nullopt);
  const Tensor product =
      std::get<0>(forward(input, weight, bias, std::nullopt, identity, packed, /*training=*/false));
  return epilogue.apply(at::add(product, *residual));
}

}  // namespace

Tensor linear_cpu(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                  ActivationName activation, at::ArrayRef<double> parameters,
                  const OptionalTensor& slope, const OptionalTensor& residual, bool save_output) {
  const Epilogue epilogue("linear", activation, parameters, slope);
  check_linear(input, weight, bias);
  if (!linear_covered(input, weight, bias, epilogue.slope())) {
    return compose_linear(input, weight, bias, activation, parameters, slope, residual,
                          save_output);
  }
  return inference(input, weight, bias, residual, epilogue, nullptr);
}

std::tuple<Tensor, Tensor> linear_training_cpu(const Tensor& input, const Tensor& weight,
                                               const OptionalTensor& bias,
                                               ActivationName activation,
                                               at::ArrayRef<double> parameters,
                                               const OptionalTensor& slope) {
  const Epilogue epilogue("linear", activation, parameters, slope);
  check_linear(input, weight, bias);
  if (!linear_covered(input, weight, bias, epilogue.slope()) || !epilogue.is_elementwise()) {
    return compose_linear_training(input, weight, bias, activation, parameters, slope);
  }
  return forward(input, weight, bias, std::nullopt, epilogue, nullptr, /*training=*/true);
}

namespace {

// The bytes that pack_linear(weight) returns: 0 where no kernel reads them.
int64_t packed_bytes(const Tensor& weight) {
  return is_kernel_dtype(weight.scalar_type()) && enabled()
             ? gemm_packed_bytes(table_dtype(weight.scalar_type()), weight.size(1), weight.size(0))
             : 0;
}

}  // namespace

Tensor pack_linear_cpu(const Tensor& weight) {
  check_pack_linear(weight);
  if (!has_kernels(weight)) {
    return empty({0}, at::kByte);
  }
  const MatrixView w(weight);
  Tensor packed = empty({packed_bytes(weight)}, at::kByte);
  gemm_pack(table_dtype(weight.scalar_type()), weight.size(1), weight.size(0), w.transposed(),
            packed.mutable_data_ptr());
  return packed;
}

Tensor pack_linear_meta(const Tensor& weight) {
  check_pack_linear(weight);
  return at::empty({packed_bytes(weight)}, weight.options().dtype(at::kByte));
}

Tensor linear_packed_cpu(const Tensor& input, const Tensor& packed, const Tensor& weight,
                         const OptionalTensor& bias, ActivationName activation,
                         at::ArrayRef<double> parameters, const OptionalTensor& slope,
                         const OptionalTensor& residual) {
  const Epilogue epilogue("linear", activation, parameters, slope);
  check_linear(input, weight, bias);
  check_packed(packed, weight);
  if (packed.numel() == 0 || !linear_covered(input, weight, bias, epilogue.slope())) {
    return linear_cpu(input, weight, bias, activation, parameters, slope, residual,
                      /*save_output=*/true);
  }
  return inference(input, weight, bias, residual, epilogue, packed.const_data_ptr());
}

namespace {

std::string linear_algorithm(const Tensor& input, const Tensor& weight, bool packed) {
  check_linear(input, weight, std::nullopt);
  if (!linear_covered(input, weight, std::nullopt, Tensor())) {
    return "aten";
  }
  const MatrixView x(input);
  const GemmProblem problem{table_dtype(input.scalar_type()),
                            x.rows,
                            weight.size(0),
                            input.size(-1),
                            x.operand,
                            MatrixView(weight).transposed(),
                            packed ? weight.const_data_ptr() : nullptr,
                            nullptr,
                            0,
                            {}};
  switch (gemm_algorithm(problem)) {
    case GemmAlgorithm::kSkinny:
      return "skinny";
    case GemmAlgorithm::kTransposed:
      return "transposed";
    case GemmAlgorithm::kInPlace:
      return "in_place";
    case GemmAlgorithm::kPackB:
      return "pack_b";
    case GemmAlgorithm::kPackedB:
      return "packed_b";
  }
  TORCH_INTERNAL_ASSERT(false);
}

}  // namespace

FusedGradients linear_backward_cpu(const Tensor& grad, const OptionalTensor& saved,
                                   const OptionalTensor& input, const OptionalTensor& weight,
                                   const OptionalTensor& bias, const OptionalTensor& slope,
                                   ActivationName activation, at::ArrayRef<double> parameters,
                                   FusedMask mask, bool save_output) {
  const Epilogue epilogue("linear_backward", activation, parameters, slope);
  check_linear_backward(epilogue, grad, saved, input, weight, bias, mask);
  if (!covered(grad) || (mask[0] && !covered(*weight)) || (mask[1] && !covered(*input))) {
    return compose_linear_backward(grad, saved, input, weight, bias, slope, activation, parameters,
                                   mask, save_output);
  }
  if (!save_output && !epilogue.is_identity() && epilogue.saves_output()) {
    return linear_backward_cpu(grad, epilogue.apply(*saved), input, weight, bias, slope, activation,
                               parameters, mask, /*save_output=*/true);
  }
  const auto none = [&] { return empty({0}, grad.scalar_type()); };
  EpilogueGradients own;
  if (mask[2]) {
    own = gradients_along_rows(epilogue, grad, saved, /*slope_per_channel=*/grad.dim() == 2);
  } else {
    auto [z, dslope] = epilogue.backward(grad, saved ? *saved : Tensor());
    own = {std::move(z), none(), std::move(dslope)};
  }
  const Tensor& dz = own.z;
  const MatrixView g(dz);
  const Dtype dtype = table_dtype(dz.scalar_type());
  const int64_t m = g.rows;
  const int64_t n = dz.size(-1);
  FusedGradients result{none(), none(), own.bias, mask[3] ? own.slope : none(),
                        mask[4] ? residual_gradient(epilogue, dz) : none()};
  if (mask[0]) {
    const MatrixView w(*weight);
    const int64_t k = weight->size(1);
    at::DimVector sizes(dz.sizes().begin(), dz.sizes().end());
    sizes.back() = k;
    Tensor& dinput = std::get<0>(result) = empty(sizes, dz.scalar_type());
    gemm({dtype, m, k, n, g.operand, w.operand, nullptr, dinput.mutable_data_ptr(), k, {}});
  }
  if (mask[1]) {
    const MatrixView x(*input);
    const int64_t k = input->size(-1);
    Tensor& dweight = std::get<1>(result) = empty({n, k}, dz.scalar_type());
    gemm({dtype, n, k, m, g.transposed(), x.operand, nullptr, dweight.mutable_data_ptr(), k, {}});
  }
  return result;
}

void check_packed(const Tensor& packed, const Tensor& weight) {
  const OperatorName op("linear_packed");
  check_defined(op, "packed", packed);
  check_defined(op, "weight", weight);
  TORCH_CHECK(packed.scalar_type() == at::kByte && packed.dim() == 1 && has_sizes(packed), op,
              "packed: expected a 1-dimensional uint8 tensor, got ", packed.toString(),
              " of shape ", packed.sym_sizes());
  TORCH_CHECK(packed.device() == weight.device(), op, "packed: expected the device of weight, ",
              weight.device(), ", got ", packed.device());
  if (weight.dim() != 2 || weight.unsafeGetTensorImpl()->has_symbolic_sizes_strides()) {
    return;
  }
  const int64_t bytes = packed_bytes(weight);
  TORCH_CHECK(packed.sym_numel() == 0 || (packed.is_contiguous() && packed.sym_numel() == bytes),
              op, "packed: expected what pack_linear(weight) returns, ", bytes, " bytes, got ",
              packed.sym_numel());
}

TORCH_LIBRARY_IMPL(fastact, CompositeImplicitAutograd, m) {
  m.impl("linear_algorithm", TORCH_FN(linear_algorithm));
}

}  // namespace fastact
