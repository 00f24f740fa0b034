// Softmax on CUDA devices: rows of contiguous elements, or [outer, length, inner] along `length`.
#include <ATen/WrapDimUtils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/log_softmax.h>

#include "cuda/operators.h"
#include "ops/softmax/softmax.h"

namespace fastact {
namespace {

const SoftmaxLaunches& launches_for(const Tensor& t) {
  return *softmax_launches[table_dtype(t.scalar_type())];
}

SoftmaxColumns shape_of(const Tensor& t, int64_t dim, double scale, bool log) {
  SoftmaxColumns shape{1, 1, 1, scale, log};
  for (int64_t i = 0; i < t.dim(); ++i) {
    (i < dim ? shape.outer : i == dim ? shape.length : shape.inner) *= t.size(i);
  }
  return shape;
}

Tensor empty_result(const Tensor& t) { return at::empty(t.sizes(), t.options()); }

// A grid has fewer than 2^31 blocks, of which the kernels give each row or 32 columns one.
bool fits_grid(const Tensor& t, int64_t dim) {
  const int64_t length = t.dim() == 0 ? 1 : t.size(dim);
  return length == 0 || t.numel() / length < (int64_t{1} << 31) ||
         not_covered("a softmax of 2^31 rows");
}

Tensor forward(const OperatorName& op, const Tensor& self, int64_t dim, double scale, bool log) {
  Tensor y = empty_result(self);
  if (y.numel() == 0) {
    return y;
  }
  const Tensor x = self.contiguous();
  const SoftmaxColumns shape = shape_of(x, dim, scale, log);
  launch_on_device_of(op, self, [&](DeviceStream stream) {
    const SoftmaxLaunches& launches = launches_for(x);
    if (shape.inner == 1) {
      launches.rows(x.const_data_ptr(), y.mutable_data_ptr(),
                    {shape.outer, shape.length, scale, log}, stream);
    } else {
      launches.columns(x.const_data_ptr(), y.mutable_data_ptr(), shape, stream);
    }
  });
  return y;
}

Tensor backward(const OperatorName& op, const Tensor& grad, const Tensor& output, int64_t dim,
                double scale, bool log) {
  Tensor dx = empty_result(output);
  if (dx.numel() == 0) {
    return dx;
  }
  const Tensor g = grad.contiguous();
  const Tensor y = output.contiguous();
  const SoftmaxColumns shape = shape_of(y, dim, scale, log);
  launch_on_device_of(op, output, [&](DeviceStream stream) {
    const SoftmaxLaunches& launches = launches_for(y);
    if (shape.inner == 1) {
      launches.rows_backward(g.const_data_ptr(), y.const_data_ptr(), dx.mutable_data_ptr(),
                             {shape.outer, shape.length, scale, log}, stream);
    } else {
      launches.columns_backward(g.const_data_ptr(), y.const_data_ptr(), dx.mutable_data_ptr(),
                                shape, stream);
    }
  });
  return dx;
}

// The rows of `t`, contiguous, under their mask, which is kept alive in `whole_rows`.
SoftmaxRows masked_rows(const Tensor& t, const OptionalTensor& mask, double scale, bool is_causal,
                        Tensor& whole_rows) {
  const int64_t length = t.size(-1);
  SoftmaxRows rows{t.numel() / length, length, scale, /*log=*/false};
  if (is_causal) {
    rows.mask_kind = MaskKind::kCausal;
    rows.mask_dims = 1;
    rows.mask_sizes[0] = t.size(-2);
    return rows;
  }
  rows.mask_kind = mask->scalar_type() == at::kBool ? MaskKind::kBoolean : MaskKind::kAdded;
  // Of a mask that is broadcast only its rows are written out.
  at::DimVector own(mask->sizes().begin(), mask->sizes().end());
  if (own.empty()) {
    own.push_back(1);
  }
  own.back() = length;
  whole_rows = mask->expand(own).contiguous();
  rows.mask = whole_rows.const_data_ptr();
  const Tensor expanded = whole_rows.expand(t.sizes());
  rows.mask_dims = static_cast<int>(t.dim()) - 1;
  for (int d = 0; d < rows.mask_dims; ++d) {
    rows.mask_sizes[d] = expanded.size(-2 - d);
    rows.mask_strides[d] = expanded.size(-2 - d) == 1 ? 0 : expanded.stride(-2 - d);
  }
  return rows;
}

// Whether the kernels of rows serve `t` under this mask.
bool covered_by_rows(const Tensor& t, const OptionalTensor& mask, int64_t dim) {
  if (!covered<kDevice>(t) || !fits_grid(t, dim)) {
    return false;
  }
  if (t.dim() == 0 || dim != t.dim() - 1) {
    return not_covered("a softmax with a mask over another dimension than the last");
  }
  if (t.dim() - 1 > kMaxMaskDims) {
    return not_covered("a softmax with a mask of more than 9 dimensions");
  }
  const bool is_boolean =
      is_defined(mask) && mask->layout() == at::kStrided && mask->scalar_type() == at::kBool;
  return !is_defined(mask) || is_boolean || covered<kDevice>(*mask);
}

Tensor softmax_cuda(const Tensor& self, int64_t dim, double scale) {
  dim = at::maybe_wrap_dim(dim, self.dim());
  return covered<kDevice>(self) && fits_grid(self, dim)
             ? forward("softmax", self, dim, scale, /*log=*/false)
             : compose_softmax(self, dim, scale);
}

Tensor log_softmax_cuda(const Tensor& self, int64_t dim) {
  dim = at::maybe_wrap_dim(dim, self.dim());
  return covered<kDevice>(self) && fits_grid(self, dim)
             ? forward("log_softmax", self, dim, 1, /*log=*/true)
             : at::log_softmax(self, dim);
}

Tensor softmax_backward_cuda(const Tensor& grad, const Tensor& output, int64_t dim, double scale) {
  const OperatorName op("softmax_backward");
  dim = check_softmax_backward(op, grad, output, dim);
  return covered<kDevice>(grad, output) && fits_grid(output, dim)
             ? backward(op, grad, output, dim, scale, /*log=*/false)
             : compose_softmax_backward(grad, output, dim, scale);
}

Tensor log_softmax_backward_cuda(const Tensor& grad, const Tensor& output, int64_t dim) {
  const OperatorName op("log_softmax_backward");
  dim = check_softmax_backward(op, grad, output, dim);
  return covered<kDevice>(grad, output) && fits_grid(output, dim)
             ? backward(op, grad, output, dim, 1, /*log=*/true)
             : compose_log_softmax_backward(grad, output, dim);
}

Tensor masked_softmax_cuda(const Tensor& self, const OptionalTensor& mask, int64_t dim,
                           double scale, bool is_causal) {
  const OperatorName op("masked_softmax");
  dim = check_masked_softmax(self, mask, dim, is_causal);
  if (!covered_by_rows(self, mask, dim)) {
    return compose_masked_softmax(self, mask, dim, scale, is_causal).contiguous();
  }
  if (!is_causal && !is_defined(mask)) {
    return forward(op, self, dim, scale, /*log=*/false);
  }
  Tensor y = empty_result(self);
  if (y.numel() == 0) {
    return y;
  }
  const Tensor x = self.contiguous();
  Tensor whole_rows;
  const SoftmaxRows rows = masked_rows(x, mask, scale, is_causal, whole_rows);
  launch_on_device_of(op, self, [&](DeviceStream stream) {
    launches_for(x).rows(x.const_data_ptr(), y.mutable_data_ptr(), rows, stream);
  });
  return y;
}

Tensor masked_softmax_backward_cuda(const Tensor& grad, const Tensor& output,
                                    const OptionalTensor& mask, int64_t dim, double scale,
                                    bool is_causal) {
  const OperatorName op("masked_softmax_backward");
  dim = check_masked_softmax_backward(grad, output, mask, dim, is_causal);
  if (!covered<kDevice>(grad, output) || !covered_by_rows(output, mask, dim)) {
    return compose_masked_softmax_backward(grad, output, mask, dim, scale, is_causal);
  }
  if (!is_causal && !is_defined(mask)) {
    return backward(op, grad, output, dim, scale, /*log=*/false);
  }
  Tensor dx = empty_result(output);
  if (dx.numel() == 0) {
    return dx;
  }
  const Tensor g = grad.contiguous();
  const Tensor y = output.contiguous();
  Tensor whole_rows;
  const SoftmaxRows rows = masked_rows(y, mask, scale, is_causal, whole_rows);
  launch_on_device_of(op, output, [&](DeviceStream stream) {
    launches_for(y).rows_backward(g.const_data_ptr(), y.const_data_ptr(), dx.mutable_data_ptr(),
                                  rows, stream);
  });
  return dx;
}

const CudaRegistration register_softmax{softmax_op, Cuda<&softmax_cuda>{}};
const CudaRegistration register_softmax_backward{softmax_backward_op,
                                                 Cuda<&softmax_backward_cuda>{}};
const CudaRegistration register_log_softmax{log_softmax_op, Cuda<&log_softmax_cuda>{}};
const CudaRegistration register_log_softmax_backward{log_softmax_backward_op,
                                                     Cuda<&log_softmax_backward_cuda>{}};
const CudaRegistration register_masked_softmax{masked_softmax_op, Cuda<&masked_softmax_cuda>{}};
const CudaRegistration register_masked_softmax_backward{masked_softmax_backward_op,
                                                        Cuda<&masked_softmax_backward_cuda>{}};

}  // namespace
}  // namespace fastact
