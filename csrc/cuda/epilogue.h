// What follows a product, on tensors: bias, residual and activation in one pass, and backward the
// gradient before the activation with the bias's. Rows are those of the last dimension.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "core/epilogue.h"
#include "cpu/tensors.h"
#include "cuda/operators.h"

namespace fastact {

// Whether the kernels have the activation: one of the registry's rows, or none.
inline bool has_device_epilogue(const Epilogue& epilogue) {
  return epilogue.activation() || epilogue.is_identity();
}

// act(x + bias + residual) in the memory of `x`, whose elements lie as the residual's. Undefined
// ones are left out.
inline void finish_on_device(const OperatorName& op, const Epilogue& epilogue, const Tensor& x,
                             const Tensor& bias, const Tensor& residual, int64_t columns) {
  if (x.numel() == 0) {
    return;
  }
  const Activation* const activation = epilogue.activation();
  const EpilogueLaunches& launches = *epilogue_launches[table_dtype(x.scalar_type())];
  const auto forward = activation ? launches.forward[activation->index] : launches.identity;
  const auto pointer = [](const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; };
  if (activation) {
    activation->check(epilogue.parameters());
  }
  launch_on_device_of(op, x, [&](DeviceStream stream) {
    forward(x.const_data_ptr(), pointer(bias), pointer(residual), x.mutable_data_ptr(),
            x.numel() / columns, columns, epilogue.parameters(), stream);
  });
}

struct DeviceGradients {
  Tensor z;
  Tensor bias;
};

// Of contiguous operands; `saved` is what the activation's backward reads.
inline DeviceGradients epilogue_gradients_on_device(const OperatorName& op,
                                                    const Epilogue& epilogue, const Tensor& grad,
                                                    const Tensor& saved) {
  const int64_t columns = grad.size(-1);
  const int64_t rows = columns == 0 ? 0 : grad.numel() / columns;
  const Activation* const activation = epilogue.activation();
  const EpilogueLaunches& launches = *epilogue_launches[table_dtype(grad.scalar_type())];
  const auto backward =
      activation ? launches.backward[activation->index] : launches.identity_backward;
  const DeviceGradients own{activation ? at::empty_like(grad) : grad,
                            at::empty({columns}, grad.options())};
  if (columns == 0) {
    return own;
  }
  const Tensor parts = at::empty({rows == 0 ? 0 : launches.backward_parts(rows, columns)},
                                 grad.options().dtype(compute_dtype(grad.scalar_type())));
  launch_on_device_of(op, grad, [&](DeviceStream stream) {
    backward(grad.const_data_ptr(), activation ? saved.const_data_ptr() : nullptr,
             own.z.mutable_data_ptr(), own.bias.mutable_data_ptr(), parts.mutable_data_ptr(), rows,
             columns, epilogue.parameters(), stream);
  });
  return own;
}

}  // namespace fastact
