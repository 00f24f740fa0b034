// PReLU on CUDA devices.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/prelu.h>
#include <ATen/ops/zeros_like.h>

#include "cpu/tensors.h"
#include "cuda/operators.h"
#include "ops/prelu/prelu.h"
#include "ops/prelu/rows.h"

namespace fastact {
namespace {

const PreluLaunches& launches_for(const Tensor& t) {
  return *prelu_launches[table_dtype(t.scalar_type())];
}

SlopeRows rows_of(const Tensor& x, int64_t slopes) {
  const PreluRows r = prelu_rows(x, slopes);
  return {r.rows, r.length, r.channels, r.slope_step == 1};
}

Tensor described(const Tensor& t, int64_t slopes) {
  return has_prelu_rows(t, slopes) ? t : t.contiguous();
}

Tensor prelu_cuda(const Tensor& self, const Tensor& weight) {
  check_prelu("prelu", self, weight);
  if (!covered<kDevice>(self, weight)) {
    return at::prelu(self, weight);
  }
  Tensor result = at::empty_like(self);
  if (result.numel() == 0) {
    return result;
  }
  const int64_t slopes = weight.numel();
  const Tensor x = described(self, slopes);
  const Tensor w = weight.contiguous();
  const bool fits = same_dense_layout(result, x);
  const Tensor y = fits ? result : at::empty_like(x);
  launch_on_device_of("prelu", self, [&](DeviceStream stream) {
    launches_for(x).forward(x.const_data_ptr(), w.const_data_ptr(), y.mutable_data_ptr(),
                            rows_of(x, slopes), stream);
  });
  return fits ? result : result.copy_(y);
}

std::tuple<Tensor, Tensor> prelu_backward_cuda(const Tensor& grad, const Tensor& self,
                                               const Tensor& weight) {
  check_prelu_backward(grad, self, weight);
  if (!covered<kDevice>(self, weight, grad)) {
    return compose_prelu_backward(grad, self, weight);
  }
  Tensor result = at::empty_like(self);
  if (result.numel() == 0) {
    return {result, at::zeros_like(weight)};
  }
  const int64_t slopes = weight.numel();
  const Tensor x = described(self, slopes);
  const Tensor w = weight.contiguous();
  const Tensor g = with_layout_of(x, grad);
  const bool fits = same_dense_layout(result, x);
  const Tensor dx = fits ? result : at::empty_like(x);
  Tensor dweight = at::empty(weight.sizes(), weight.options());
  const SlopeRows rows = rows_of(x, slopes);
  const Tensor parts = at::empty({launches_for(x).backward_parts(rows)},
                                 x.options().dtype(compute_dtype(x.scalar_type())));
  launch_on_device_of("prelu_backward", self, [&](DeviceStream stream) {
    launches_for(x).backward(g.const_data_ptr(), x.const_data_ptr(), w.const_data_ptr(),
                             dx.mutable_data_ptr(), dweight.mutable_data_ptr(),
                             parts.mutable_data_ptr(), rows, stream);
  });
  return {fits ? result : result.copy_(dx), dweight};
}

const CudaRegistration register_prelu{prelu_op, Cuda<&prelu_cuda>{}};
const CudaRegistration register_prelu_backward{prelu_backward_op, Cuda<&prelu_backward_cuda>{}};

}  // namespace
}  // namespace fastact
