// What PReLU accepts.
#include "core/checks.h"

#include "ops/prelu/prelu.h"

namespace fastact {

void check_prelu(const OperatorName& op, const Tensor& self, const Tensor& weight,
                 const char* name) {
  check_defined(op, "input", self);
  check_defined(op, name, weight);
  if (!has_sizes(self) || !has_sizes(weight)) {
    return;  // at::prelu takes or refuses them
  }
  check_like(op, name, weight, "input", self);
  TORCH_CHECK(weight.dim() <= 1, op, name, ": expected a scalar or a 1-dimensional tensor, got ",
              weight.dim(), " dimensions");
  const c10::SymInt count = weight.sym_numel();
  if (count != 1) {
    TORCH_CHECK(self.dim() > 0, op, "input: expected at least 1 dimension for a ", name, " of ",
                count, " elements, got a 0-dimensional tensor");
    const c10::SymInt channels = self.dim() > 1 ? self.sym_size(1) : c10::SymInt(1);
    TORCH_CHECK(channels == count, op, name, ": expected 1 or ", channels,
                " elements (input's size in dimension 1), got ", count);
  }
}

void check_prelu_backward(const Tensor& grad, const Tensor& self, const Tensor& weight) {
  check_prelu("prelu_backward", self, weight);
  check_gradient("prelu_backward", grad, "self", self);
}

}  // namespace fastact
