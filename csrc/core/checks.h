// What the checks of every operator are made of. An operator's check_...() is called by whichever
// of its kernels computes (CPU, fake, composition, and autograd where that composes) before one of
// them forms a pointer; a message names operator, argument, what was expected and what came.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <ostream>

namespace fastact {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// An operator as messages name it: fastact.relu_backward.
struct OperatorName {
  const char* family;
  const char* suffix = "";
  OperatorName(const char* family, const char* suffix = "") : family(family), suffix(suffix) {}
};
inline std::ostream& operator<<(std::ostream& out, const OperatorName& op) {
  return out << "fastact." << op.family << op.suffix << "(): ";
}

inline bool is_defined(const OptionalTensor& t) { return t && t->defined(); }

inline const Tensor& value_or_undefined(const OptionalTensor& t) {
  static const Tensor undefined;
  return t ? *t : undefined;
}

// Whether kernels may ask for sizes: nested tensors have none that fit one shape.
inline bool has_sizes(const Tensor& t) {
  return t.defined() && t.layout() == at::kStrided && !t.is_nested();
}

// Compiled autograd traces a node with this tensor in place of a gradient that it does not know yet
// (allocate_dummy in torch/_dynamo/compiled_autograd.py): fake kernels cannot check its shape.
inline bool is_stand_in(const Tensor& grad) {
  return grad.dim() == 2 && grad.sym_size(0) == 0 && grad.sym_size(1) == 123456789;
}

// `t` is a tensor: from Python, None comes as an undefined one.
inline void check_defined(const OperatorName& op, const char* name, const Tensor& t) {
  TORCH_CHECK_TYPE(t.defined(), op, name, ": expected a tensor, got None");
}

// `t` has the dtype and the device of `other`.
inline void check_like(const OperatorName& op, const char* name, const Tensor& t,
                       const char* other_name, const Tensor& other) {
  TORCH_CHECK(t.scalar_type() == other.scalar_type(), op, name, ": expected the dtype of ",
              other_name, ", ", other.scalar_type(), ", got ", t.scalar_type());
  TORCH_CHECK(t.device() == other.device(), op, name, ": expected the device of ", other_name, ", ",
              other.device(), ", got ", t.device());
}

// `t` has these sizes, which are those of what `whose` says.
inline void check_sizes(const OperatorName& op, const char* name, const Tensor& t,
                        const char* whose, c10::SymIntArrayRef sizes) {
  bool fits = t.dim() == static_cast<int64_t>(sizes.size());
  for (std::size_t i = 0; fits && i < sizes.size(); ++i) {
    fits = TORCH_GUARD_OR_TRUE(t.sym_size(static_cast<int64_t>(i)).sym_eq(sizes[i]));
  }
  TORCH_CHECK(fits, op, name, ": expected the shape of ", whose, ", ", sizes, ", got ",
              t.sym_sizes());
}

// The operands of a backward operator whose gradient and saved tensor (named as in its schema) have
// one shape.
inline void check_gradient(const OperatorName& op, const Tensor& grad, const char* saved_name,
                           const Tensor& saved) {
  check_defined(op, "grad", grad);
  check_defined(op, saved_name, saved);
  if (has_sizes(grad) && has_sizes(saved) && !is_stand_in(grad)) {
    check_sizes(op, "grad", grad, saved_name, saved.sym_sizes());
    check_like(op, "grad", grad, saved_name, saved);
  }
}

}  // namespace fastact
