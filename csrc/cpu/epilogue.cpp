#include "cpu/epilogue.h"

#include "cpu/memory.h"

namespace fastact {

BoundEpilogue::BoundEpilogue(const Epilogue& epilogue, at::ScalarType dtype, Along channels,
                             const OptionalTensor& bias, const Tensor& residual,
                             const Tensor& pre_activation) {
  const Dtype own = table_dtype(dtype);
  gemm_.channels = channels;
  if (is_defined(bias)) {
    bias_ = widened(*bias);
    gemm_.bias = bias_->const_data_ptr();
  }
  if (residual.defined()) {
    add_residual_ = {own, residual.const_data_ptr()};
    gemm_.stages.add(add_residual_);
  }
  if (pre_activation.defined()) {
    keep_pre_activation_ = {own, pre_activation.mutable_data_ptr()};
    gemm_.stages.add(keep_pre_activation_);
  }
  if (const Activation* activation = epilogue.activation()) {
    activation->check(epilogue.parameters());
    activate_ = {kernels().elementwise[compute_dtype(own)].forward[activation->index],
                 epilogue.parameters()};
    gemm_.stages.add(activate_);
  } else if (epilogue.slope().defined()) {
    slope_ = widened(epilogue.slope());
    multiply_by_slope_ = {own, slope_->const_data_ptr(), slope_->numel() > 1, channels};
    gemm_.stages.add(multiply_by_slope_);
  }
}

void BoundEpilogue::add_softmax(const Epilogue::Softmax& softmax, int64_t length) {
  softmax_ = {length, softmax.scale, softmax.log};
  gemm_.softmax = &softmax_;
}

namespace {

bool has_kernel(const Epilogue& epilogue, const Tensor& grad, bool slope_per_channel) {
  const Tensor& slope = epilogue.slope();
  return epilogue.activation() ||
         (slope.defined() && slope.numel() > 0 && has_kernels(slope) && slope.is_contiguous() &&
          slope.scalar_type() == grad.scalar_type() &&
          (slope.numel() == 1 || (slope_per_channel && slope.numel() == grad.size(-1))));
}

}  // namespace

EpilogueGradients gradients_along_rows(const Epilogue& epilogue, const Tensor& grad,
                                       const OptionalTensor& saved, bool slope_per_channel) {
  const Activation* activation = epilogue.activation();
  const Tensor& slope = epilogue.slope();
  const int64_t n = grad.size(-1);
  const bool together = has_kernel(epilogue, grad, slope_per_channel) && is_defined(saved) &&
                        has_kernels(*saved) && grad.scalar_type() == saved->scalar_type() &&
                        grad.is_contiguous() && saved->is_contiguous() &&
                        grad.sizes() == saved->sizes();
  EpilogueGradients result;
  if (together) {
    result.z = empty(grad.sizes(), grad.scalar_type());
  } else {
    auto [z, dslope] = epilogue.backward(grad, saved ? *saved : Tensor());
    result.z = contiguous(z);
    result.slope = std::move(dslope);
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
        const int64_t step = slopes > 1 ? 1 : rows;
        for (int64_t i = row; i < row + rows; i += step) {
          const int64_t at = i * row_bytes;
          backward(g + at, s + at, w, slopes > 1, dz + at, dslope, step * n);
        }
      };
    }
  }
  char* first = static_cast<char*>(sums.mutable_data_ptr());
  gemm_column_sums(dtype, result.z.const_data_ptr(), m, n, first, form, slopes);
  result.bias = narrowed(first, {n}, grad.scalar_type());
  if (slopes) {
    result.slope = narrowed(first + n * sums.element_size(), slope.sizes(), grad.scalar_type());
  }
  return result;
}

}  // namespace fastact
