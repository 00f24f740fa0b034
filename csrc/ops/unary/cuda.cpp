// The unary activations on CUDA devices.
#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "core/activation.h"
#include "cuda/operators.h"

namespace fastact {
namespace {

const ElementwiseLaunches& launches_for(const Tensor& t) {
  return *elementwise_launches[table_dtype(t.scalar_type())];
}

// `from` and `to` have one dense layout.
void forward_into(const OperatorName& op, const Activation& activation, const Tensor& from,
                  const Tensor& to, const double* parameters) {
  if (from.numel() == 0) {
    return;
  }
  launch_on_device_of(op, from, [&](DeviceStream stream) {
    launches_for(from).forward[activation.index](from.const_data_ptr(), to.mutable_data_ptr(),
                                                 from.numel(), parameters, stream);
  });
}

Tensor unary_cuda(const Activation& activation, const Tensor& self, const double* parameters) {
  activation.check(parameters);
  if (!covered<kDevice>(self)) {
    return activation.compose(self, parameters);
  }
  Tensor result =
      activation.keeps_strides ? at::empty_like(self) : at::empty(self.sizes(), self.options());
  forward_into(activation.name, activation, with_layout_of(result, self), result, parameters);
  return result;
}

Tensor& unary_inplace_cuda(const Activation& activation, Tensor& self, const double* parameters) {
  activation.check(parameters);
  at::assert_no_internal_overlap(self);
  if (!covered<kDevice>(self)) {
    return self.copy_(activation.compose(self, parameters));
  }
  const OperatorName op(activation.name, "_");
  if (self.is_non_overlapping_and_dense()) {
    forward_into(op, activation, self, self, parameters);
    return self;
  }
  const Tensor dense = self.contiguous();
  forward_into(op, activation, dense, dense, parameters);
  return self.copy_(dense);
}

Tensor unary_backward_cuda(const Activation& activation, const Tensor& grad, const Tensor& saved,
                           const double* parameters) {
  check_unary_backward(activation, grad, saved);
  if (!covered<kDevice>(saved, grad)) {
    return activation.compose_backward(grad, saved, parameters);
  }
  Tensor result = at::empty_like(saved);
  if (result.numel() == 0) {
    return result;
  }
  const Tensor g = with_layout_of(result, grad);
  const Tensor s = with_layout_of(result, saved);
  launch_on_device_of({activation.name, "_backward"}, saved, [&](DeviceStream stream) {
    launches_for(saved).backward[activation.index](g.const_data_ptr(), s.const_data_ptr(),
                                                   result.mutable_data_ptr(), result.numel(),
                                                   parameters, stream);
  });
  return result;
}

const bool registered = [] {
  implement_for(kCudaKeys, [](torch::Library& m) {
    implement_unary(m, UnaryKernels{unary_cuda, unary_inplace_cuda, unary_backward_cuda});
  });
  return true;
}();

}  // namespace
}  // namespace fastact
