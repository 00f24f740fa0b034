// The gated units on CUDA devices: `self` as [outer, 2, run], run contiguous elements in each half.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <utility>

#include "cuda/operators.h"
#include "ops/gated/gated.h"

namespace fastact {
namespace {

// A tensor in the order of its memory, contiguous, and where the dimension is that is halved.
struct Halves {
  MemoryOrder order;
  Tensor x;
  int64_t dim;
  int64_t outer = 1;
  int64_t run = 0;  // elements of a half

  Halves(const Tensor& dense, int64_t dim_of_dense)
      : order(dense), x(order.apply(dense)), dim(order.position(dim_of_dense)) {
    for (int64_t i = 0; i < dim; ++i) {
      outer *= x.size(i);
    }
    run = outer == 0 ? 0 : x.numel() / outer / 2;
  }
};

Tensor dense(const Tensor& t) {
  return t.is_non_overlapping_and_dense() ? t : at::empty_like(t).copy_(t);
}

Tensor gated_cuda(const GatedUnit& unit, const Tensor& self, int64_t dim) {
  dim = check_gated(unit, self, dim);
  if (!covered<kDevice>(self)) {
    return compose_gated(unit, self, dim);
  }
  const Halves halves(dense(self), dim);
  at::DimVector sizes(halves.x.sizes().begin(), halves.x.sizes().end());
  sizes[halves.dim] /= 2;
  const Tensor y = at::empty(sizes, self.options());
  if (y.numel() > 0) {
    launch_on_device_of(unit.name(), self, [&](DeviceStream stream) {
      elementwise_launches[table_dtype(self.scalar_type())]->gated[unit.gate](
          halves.x.const_data_ptr(), y.mutable_data_ptr(), halves.outer, halves.run,
          unit.gate_first, stream);
    });
  }
  return halves.order.revert(y);
}

Tensor gated_backward_cuda(const GatedUnit& unit, const Tensor& grad, const Tensor& self,
                           int64_t dim) {
  dim = check_gated_backward(unit, grad, self, dim);
  if (!covered<kDevice>(self, grad)) {
    return compose_gated_backward(unit, grad, self, dim);
  }
  const Halves halves(dense(self), dim);
  const Tensor g = halves.order.apply(grad).contiguous();
  const Tensor dx = at::empty_like(halves.x);
  if (dx.numel() > 0) {
    launch_on_device_of({unit.name(), "_backward"}, self, [&](DeviceStream stream) {
      elementwise_launches[table_dtype(self.scalar_type())]->gated_backward[unit.gate](
          g.const_data_ptr(), halves.x.const_data_ptr(), dx.mutable_data_ptr(), halves.outer,
          halves.run, unit.gate_first, stream);
    });
  }
  return halves.order.revert(dx);
}

template <int kGate>
struct Kernels {
  static Tensor forward(const Tensor& self, int64_t dim) {
    return gated_cuda(gated_units[kGate], self, dim);
  }
  static Tensor backward(const Tensor& grad, const Tensor& self, int64_t dim) {
    return gated_backward_cuda(gated_units[kGate], grad, self, dim);
  }
};

template <int... kGates>
bool register_units(std::integer_sequence<int, kGates...>) {
  (CudaRegistration(gated_ops[kGates].forward, Cuda<&Kernels<kGates>::forward>{}), ...);
  (CudaRegistration(gated_ops[kGates].backward, Cuda<&Kernels<kGates>::backward>{}), ...);
  return true;
}

const bool registered = register_units(std::make_integer_sequence<int, kNumGates>());

}  // namespace
}  // namespace fastact
