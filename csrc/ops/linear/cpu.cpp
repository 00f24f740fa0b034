// linear on the CPU: the matrix product of cpu/gemm.h with the activation on its tiles.
#include <ATen/WrapDimUtils.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <c10/util/MaybeOwned.h>
#include <torch/library.h>

#include "core/epilogue.h"
#include "cpu/gemm/gemm.h"
#include "cpu/memory.h"
#include "cpu/tensors.h"
#include "ops/linear/linear.h"

namespace fastact {
namespace {

at::ScalarType compute_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

// Contiguous elements: t's own where it has them. Borrowed, since counting its owners up and down
// takes 10 ns of a call's 1,000.
using DenseTensor = c10::MaybeOwned<Tensor>;

DenseTensor dense(const Tensor& t) {
  return t.is_contiguous() ? DenseTensor::borrowed(t) : DenseTensor::owned(contiguous(t));
}

// The same in the compute type.
DenseTensor widened(const Tensor& t) {
  const at::ScalarType dtype = compute_dtype(t.scalar_type());
  DenseTensor row = dense(t);
  if (dtype == t.scalar_type()) {
    return row;
  }
  Tensor result = empty(t.sizes(), dtype);
  kernels().gemm[table_dtype(t.scalar_type())].widen(row->const_data_ptr(),
                                                     result.mutable_data_ptr(), t.numel());
  return DenseTensor::owned(std::move(result));
}

// The rows of a tensor of any rank, which outlives this, as a matrix that gemm() reads as it lies,
// else as a copy.
struct MatrixView {
  DenseTensor tensor;
  GemmOperand operand;
  int64_t rows;

  explicit MatrixView(const Tensor& t)
      : tensor(t.dim() == 2 && (t.stride(0) == 1 || t.stride(1) == 1) ? DenseTensor::borrowed(t)
                                                                      : dense(t)) {
    const int64_t columns = t.size(-1);
    rows = columns ? t.numel() / columns : rows_of_empty(t);
    operand = {tensor->const_data_ptr(), t.dim() == 2 ? tensor->stride(0) : columns,
               t.dim() == 2 ? tensor->stride(1) : 1};
    // A single row or column has a stride that says nothing.
    if (rows == 1) {
      operand.row_stride = columns;
    }
    if (columns == 1 && operand.row_stride != 1) {
      operand.column_stride = 1;
    }
  }

  GemmOperand transposed() const {
    return {operand.data, operand.column_stride, operand.row_stride};
  }

 private:
  static int64_t rows_of_empty(const Tensor& t) {
    int64_t rows = 1;
    for (int64_t i = 0; i < t.dim() - 1; ++i) {
      rows *= t.size(i);
    }
    return rows;
  }
};

bool covered(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
             const OptionalTensor& slope) {
  const auto fits = [&](const OptionalTensor& t) {
    return !is_defined(t) || (has_kernels(*t) && t->scalar_type() == input.scalar_type());
  };
  return has_kernels(input) && has_kernels(weight) && weight.dim() == 2 && fits(bias) &&
         fits(slope) &&
         (!is_defined(bias) || (bias->dim() == 1 && bias->numel() == weight.size(0))) &&
         (!is_defined(slope) || slope->dim() <= 1);
}

// Whether the activation is a softmax over the last dimension.
bool along_rows(const Epilogue& epilogue, const Tensor& output) {
  return !epilogue.is_elementwise() &&
         at::maybe_wrap_dim(epilogue.softmax().dim, output.dim()) == output.dim() - 1;
}

// Output and, if `training`, the pre-activation.
std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& bias_, const OptionalTensor& residual_,
                                   const Epilogue& epilogue, const void* packed, bool training) {
  const int64_t n = weight.size(0);
  at::DimVector sizes(input.sizes().begin(), input.sizes().end());
  sizes.back() = n;
  const MatrixView x(input);
  const MatrixView w(weight);
  Tensor output = empty(sizes, input.scalar_type());
  Tensor pre_activation;
  GemmEpilogue e;
  DenseTensor bias;
  DenseTensor residual;
  DenseTensor slope;
  SoftmaxArguments softmax{};
  if (is_defined(bias_)) {
    bias = widened(*bias_);
    e.bias = bias->const_data_ptr();
  }
  if (is_defined(residual_)) {
    residual = dense(*residual_);
    e.residual = residual->const_data_ptr();
  }
  const Dtype compute = table_dtype(compute_dtype(input.scalar_type()));
  if (const Activation* activation = epilogue.activation()) {
    activation->check(epilogue.parameters());
    e.activation = kernels().elementwise[compute].forward[activation->index];
    e.parameters = epilogue.parameters();
  } else if (epilogue.slope().defined()) {
    slope = widened(epilogue.slope());
    e.prelu = kernels().elementwise[compute].prelu;
    e.slope = slope->const_data_ptr();
    // PReLU's channels are dimension 1, which here is the last one only of a matrix.
    e.slope_step = slope->numel() > 1;
  }
  const bool by_rows = along_rows(epilogue, output);
  if (by_rows) {
    softmax = {n, epilogue.softmax().scale, epilogue.softmax().log};
    e.softmax = &softmax;
  }
  if (training) {
    pre_activation = empty(sizes, input.scalar_type());
    e.pre_activation = pre_activation.mutable_data_ptr();
  }
  gemm({table_dtype(input.scalar_type()), x.rows, n, input.size(-1), x.operand, w.transposed(),
        packed, output.mutable_data_ptr(), n, e});
  if (!epilogue.is_elementwise() && !by_rows) {
    output = epilogue.apply(output);
  }
  return {std::move(output), std::move(pre_activation)};
}

// Whether the activation can run tile by tile: PReLU's slopes must lie along the last dimension.
bool tiled(const Tensor& input, const Tensor& weight, const Epilogue& epilogue) {
  const Tensor& slope = epilogue.slope();
  return !slope.defined() || slope.numel() == 1 ||
         (input.dim() == 2 && slope.numel() == weight.size(0));
}

// A residual that cannot be added to the tiles is added to the product.
Tensor inference(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                 const OptionalTensor& residual, const Epilogue& epilogue, const void* packed) {
  if (!is_defined(residual) || (has_kernels(*residual) && fits_output(*residual, input, weight))) {
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
  if (!covered(input, weight, bias, slope) || !tiled(input, weight, epilogue)) {
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
  if (!covered(input, weight, bias, slope) || !tiled(input, weight, epilogue) ||
      !epilogue.is_elementwise()) {
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
  if (packed.numel() == 0 || !covered(input, weight, bias, slope) ||
      !tiled(input, weight, epilogue)) {
    return linear_cpu(input, weight, bias, activation, parameters, slope, residual,
                      /*save_output=*/true);
  }
  return inference(input, weight, bias, residual, epilogue, packed.const_data_ptr());
}

namespace {

std::string linear_algorithm(const Tensor& input, const Tensor& weight, bool packed) {
  check_linear(input, weight, std::nullopt);
  if (!covered(input, weight, std::nullopt, std::nullopt)) {
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

// The first n sums in a dtype.
Tensor narrowed(const char* sums, int64_t n, at::IntArrayRef sizes, at::ScalarType dtype) {
  Tensor result = empty(sizes, dtype);
  kernels().gemm[table_dtype(dtype)].store_rows(sums, n, 1, n, result.mutable_data_ptr(), n);
  return result;
}

// The gradient of the pre-activation and, in the same pass where that is elementwise, its column
// sums, which are the bias's gradient, and the gradient of PReLU's slope.
Epilogue::Gradients gradient_of_pre_activation(const Epilogue& epilogue, const Tensor& grad,
                                               const OptionalTensor& saved, Tensor* dbias) {
  const Activation* activation = epilogue.activation();
  const Tensor& slope = epilogue.slope();
  const int64_t n = grad.size(-1);
  const bool by_columns = slope.defined() && slope.numel() > 1;
  const bool elementwise =
      activation || (slope.defined() && slope.numel() > 0 && has_kernels(slope) &&
                     slope.is_contiguous() && slope.scalar_type() == grad.scalar_type() &&
                     (!by_columns || (grad.dim() == 2 && slope.numel() == n)));
  const bool together = elementwise && is_defined(saved) && has_kernels(*saved) &&
                        grad.scalar_type() == saved->scalar_type() && grad.is_contiguous() &&
                        saved->is_contiguous() && grad.sizes() == saved->sizes();
  Epilogue::Gradients result;
  if (together) {
    result.z = empty(grad.sizes(), grad.scalar_type());
  } else {
    result = epilogue.backward(grad, saved ? *saved : Tensor());
    result.z = contiguous(result.z);
  }
  const Dtype dtype = table_dtype(grad.scalar_type());
  const int64_t m = MatrixView(result.z).rows;
  const int64_t slopes = together && slope.defined() ? slope.numel() : 0;
  const Tensor sums = empty({n + slopes}, compute_dtype(grad.scalar_type()));
  std::function<void(int64_t, int64_t, void*)> form;
  if (together) {
    const ElementwiseKernels& kernel = kernels().elementwise[dtype];
    const int64_t row_bytes = n * grad.element_size();
    const char* g = static_cast<const char*>(grad.const_data_ptr());
    const char* s = static_cast<const char*>(saved->const_data_ptr());
    char* dz = static_cast<char*>(result.z.mutable_data_ptr());
    if (activation) {
      form = [=, backward = kernel.backward[activation->index], parameters = epilogue.parameters()](
                 int64_t row, int64_t rows, void*) {
        const int64_t at = row * row_bytes;
        backward(g + at, s + at, dz + at, rows * n, parameters);
      };
    } else {
      form = [=, backward = kernel.prelu_backward, w = slope.const_data_ptr()](
                 int64_t row, int64_t rows, void* dslope) {
        const int64_t step = by_columns ? 1 : rows;
        for (int64_t i = row; i < row + rows; i += step) {
          const int64_t at = i * row_bytes;
          backward(g + at, s + at, w, by_columns, dz + at, dslope, step * n);
        }
      };
    }
  }
  char* first = static_cast<char*>(sums.mutable_data_ptr());
  gemm_column_sums(dtype, result.z.const_data_ptr(), m, n, first, form, slopes);
  *dbias = narrowed(first, n, {n}, grad.scalar_type());
  if (slopes) {
    result.slope =
        narrowed(first + n * sums.element_size(), slopes, slope.sizes(), grad.scalar_type());
  }
  return result;
}

}  // namespace

LinearGradients linear_backward_cpu(const Tensor& grad, const OptionalTensor& saved,
                                    const OptionalTensor& input, const OptionalTensor& weight,
                                    const OptionalTensor& bias, const OptionalTensor& slope,
                                    ActivationName activation, at::ArrayRef<double> parameters,
                                    LinearMask mask, bool save_output) {
  const Epilogue epilogue("linear_backward", activation, parameters, slope);
  check_linear_backward(epilogue, grad, saved, input, weight, bias, mask);
  if (!has_kernels(grad) || (mask[0] && !has_kernels(*weight)) ||
      (mask[1] && !has_kernels(*input))) {
    return compose_linear_backward(grad, saved, input, weight, bias, slope, activation, parameters,
                                   mask, save_output);
  }
  if (!save_output && !epilogue.is_identity() && epilogue.saves_output()) {
    return linear_backward_cpu(grad, epilogue.apply(*saved), input, weight, bias, slope, activation,
                               parameters, mask, /*save_output=*/true);
  }
  const auto none = [&] { return empty({0}, grad.scalar_type()); };
  Tensor dbias = none();
  const auto [dz, dslope] = mask[2] ? gradient_of_pre_activation(epilogue, grad, saved, &dbias)
                                    : epilogue.backward(grad, saved ? *saved : Tensor());
  const MatrixView g(dz);
  const Dtype dtype = table_dtype(dz.scalar_type());
  const int64_t m = g.rows;
  const int64_t n = dz.size(-1);
  LinearGradients result{none(), none(), dbias, mask[3] ? dslope : none(),
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
