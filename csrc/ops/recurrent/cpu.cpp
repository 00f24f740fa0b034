// Recurrent layers on the CPU: tensors in, the engine's pointers out.
#include <ATen/ops/empty.h>

#include "ops/recurrent/recurrent.h"

namespace fastact {

c10::SymInt reserve_elements(const RecurrentCall&, const RecurrentSizes&) { return 0; }

at::ScalarType reserve_dtype(const RecurrentCall& call) {
  return call.input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

RecurrentResults recurrent_cpu(const RecurrentCall& call, bool training) {
  RecurrentResults results = compose_recurrent(call);
  if (training) {
    results.reserve = at::empty({0}, call.input.options().dtype(reserve_dtype(call)));
  }
  return results;
}

RecurrentGradients recurrent_backward_cpu(const RecurrentCall& call,
                                          const RecurrentOutputGradients& grads, const Tensor&,
                                          const RecurrentMask& mask) {
  return compose_recurrent_backward(call, grads, mask);
}

}  // namespace fastact
