// Autograd of softmax and log_softmax, their fake kernels, and the ATen composition.
#include <ATen/WrapDimUtils.h>
#include <ATen/ops/_log_softmax_backward_data.h>
#include <ATen/ops/_softmax_backward_data.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/neg.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>

#include "core/activation.h"
#include "core/node.h"
#include "core/registration.h"
#include "ops/softmax/softmax.h"

namespace fastact {
namespace {

struct SoftmaxNode final : OperatorNode<SoftmaxNode> {
  bool log = false;
  int64_t dim = 0;
  double scale = 1;
  SavedVariable output;

  std::string name() const override { return log ? "fastact::log_softmax" : "fastact::softmax"; }

  template <class F>
  void each_saved(const F& f) {
    f(output, /*is_output=*/true);
  }
  template <class F>
  void each_attribute(const F& f) {
    f(log);
    f(dim);
    f(scale);
  }

  void backward(const Tensor& grad, variable_list& gradients) {
    if (task_should_compute_output(0)) {
      const Tensor y = output.unpack(getptr());
      gradients[0] = log ? log_softmax_backward_op.call(grad, y, dim)
                         : softmax_backward_op.call(grad, y, dim, scale);
    }
  }
};

// The inputs are the scores and the mask.
struct MaskedSoftmaxNode final : OperatorNode<MaskedSoftmaxNode> {
  int64_t dim = 0;
  double scale = 1;
  bool is_causal = false;
  std::vector<c10::SymInt> mask_sizes;
  SavedVariable output;
  SavedVariable selection;  // a boolean mask

  std::string name() const override { return "fastact::masked_softmax"; }

  template <class F>
  void each_saved(const F& f) {
    f(output, /*is_output=*/true);
    f(selection, /*is_output=*/false);
  }
  template <class F>
  void each_attribute(const F& f) {
    f(dim);
    f(scale);
    f(is_causal);
    f(mask_sizes);
  }

  void backward(const Tensor& grad, variable_list& gradients) {
    const bool for_mask = task_should_compute_output(1);
    if (!for_mask && !task_should_compute_output(0)) {
      return;
    }
    const Tensor mask = selection.unpack();
    const Tensor scores = masked_softmax_backward_op.call(
        grad, output.unpack(getptr()), mask.defined() ? OptionalTensor(mask) : std::nullopt, dim,
        for_mask ? 1 : scale, is_causal);
    if (!for_mask) {
      gradients[0] = scores;
      return;
    }
    // An additive mask's gradient is that of the scores, summed over where it was broadcast.
    if (task_should_compute_output(0)) {
      gradients[0] = scale == 1 ? scores : at::mul(scores, scale);
    }
    gradients[1] = scores.sum_to_size_symint(mask_sizes);
  }
};

bool differentiated_here(const Tensor& self) {
  return has_sizes(self) && is_kernel_dtype(self.scalar_type()) && !is_dual(self);
}

// `compute` runs below autograd; `describe` fills in the node, where there is one.
template <class Node, class Compute, class Describe, class... T>
Tensor record(const Compute& compute, const Describe& describe, const T&... inputs) {
  const auto node = make_node<Node>(inputs...);
  Tensor result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return compute();
  }();
  if (node) {
    describe(*node);
    set_history(result, node);
    node->output = SavedVariable(result, /*is_output=*/true);
    node_is_complete(node);
  }
  return result;
}

Tensor softmax_autograd(c10::DispatchKeySet keys, const Tensor& self, int64_t dim, double scale) {
  if (C10_UNLIKELY(!differentiated_here(self))) {
    return compose_softmax(self, dim, scale);
  }
  return record<SoftmaxNode>(
      [&] { return softmax_op.redispatch(keys & c10::after_autograd_keyset, self, dim, scale); },
      [&](SoftmaxNode& node) {
        node.dim = dim;
        node.scale = scale;
      },
      self);
}

Tensor log_softmax_autograd(c10::DispatchKeySet keys, const Tensor& self, int64_t dim) {
  if (C10_UNLIKELY(!differentiated_here(self))) {
    return at::log_softmax(self, dim);
  }
  return record<SoftmaxNode>(
      [&] { return log_softmax_op.redispatch(keys & c10::after_autograd_keyset, self, dim); },
      [&](SoftmaxNode& node) {
        node.log = true;
        node.dim = dim;
      },
      self);
}

Tensor masked_softmax_autograd(c10::DispatchKeySet keys, const Tensor& self,
                               const OptionalTensor& mask_, int64_t dim, double scale,
                               bool is_causal) {
  const Tensor& mask = value_or_undefined(mask_);
  if (C10_UNLIKELY(!differentiated_here(self) || is_dual(mask))) {
    return compose_masked_softmax(self, mask_, check_masked_softmax(self, mask_, dim, is_causal),
                                  scale, is_causal);
  }
  return record<MaskedSoftmaxNode>(
      [&] {
        return masked_softmax_op.redispatch(keys & c10::after_autograd_keyset, self, mask_, dim,
                                            scale, is_causal);
      },
      [&](MaskedSoftmaxNode& node) {
        node.dim = dim;
        node.scale = scale;
        node.is_causal = is_causal;
        if (mask.defined() && mask.scalar_type() == at::kBool) {
          node.selection = SavedVariable(mask, /*is_output=*/false);
        } else if (mask.defined()) {
          node.mask_sizes.assign(mask.sym_sizes().begin(), mask.sym_sizes().end());
        }
      },
      self, mask);
}

bool composed_backward(const Tensor& grad, const Tensor& output) {
  return compute_requires_grad(grad, output) || !differentiated_here(output) || is_dual(grad);
}

Tensor softmax_backward_autograd(c10::DispatchKeySet keys, const Tensor& grad, const Tensor& output,
                                 int64_t dim, double scale) {
  if (composed_backward(grad, output)) {
    return compose_softmax_backward(grad, output, dim, scale);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return softmax_backward_op.redispatch(keys & c10::after_autograd_keyset, grad, output, dim,
                                        scale);
}

Tensor log_softmax_backward_autograd(c10::DispatchKeySet keys, const Tensor& grad,
                                     const Tensor& output, int64_t dim) {
  if (composed_backward(grad, output)) {
    return compose_log_softmax_backward(grad, output, dim);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return log_softmax_backward_op.redispatch(keys & c10::after_autograd_keyset, grad, output, dim);
}

Tensor masked_softmax_backward_autograd(c10::DispatchKeySet keys, const Tensor& grad,
                                        const Tensor& output, const OptionalTensor& mask,
                                        int64_t dim, double scale, bool is_causal) {
  if (composed_backward(grad, output)) {
    check_masked_softmax_backward(grad, output, mask, dim, is_causal);
    return compose_masked_softmax_backward(grad, output, mask, dim, scale, is_causal);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return masked_softmax_backward_op.redispatch(keys & c10::after_autograd_keyset, grad, output,
                                               mask, dim, scale, is_causal);
}

Tensor masked_softmax_meta(const Tensor& self, const OptionalTensor& mask, int64_t dim,
                           double scale, bool is_causal) {
  dim = check_masked_softmax(self, mask, dim, is_causal);
  return is_kernel_dtype(self.scalar_type())
             ? at::empty_symint(self.sym_sizes(), self.options())
             : compose_masked_softmax(self, mask, dim, scale, is_causal);
}

Tensor masked_softmax_composed(const Tensor& self, const OptionalTensor& mask, int64_t dim,
                               double scale, bool is_causal) {
  dim = check_masked_softmax(self, mask, dim, is_causal);
  return compose_masked_softmax(self, mask, dim, scale, is_causal).contiguous();
}

// Softmax's output is contiguous whatever its input's layout, as PyTorch's.
Tensor contiguous_meta(const Tensor& self, int64_t dim) {
  at::maybe_wrap_dim(dim, self.dim());
  return at::empty_symint(self.sym_sizes(), self.options());
}

Tensor softmax_meta(const Tensor& self, int64_t dim, double scale) {
  return is_kernel_dtype(self.scalar_type()) ? contiguous_meta(self, dim)
                                             : compose_softmax(self, dim, scale);
}

Tensor log_softmax_meta(const Tensor& self, int64_t dim) {
  return is_kernel_dtype(self.scalar_type()) ? contiguous_meta(self, dim)
                                             : at::log_softmax(self, dim);
}

Tensor softmax_backward_meta(const Tensor& grad, const Tensor& output, int64_t dim, double) {
  check_softmax_backward("softmax_backward", grad, output, dim);
  return contiguous_meta(output, dim);
}

Tensor log_softmax_backward_meta(const Tensor& grad, const Tensor& output, int64_t dim) {
  check_softmax_backward("log_softmax_backward", grad, output, dim);
  return contiguous_meta(output, dim);
}

Tensor masked_softmax_backward_meta(const Tensor& grad, const Tensor& output,
                                    const OptionalTensor& mask, int64_t dim, double,
                                    bool is_causal) {
  check_masked_softmax_backward(grad, output, mask, dim, is_causal);
  return contiguous_meta(output, dim);
}

Tensor masked_softmax_backward_composed(const Tensor& grad, const Tensor& output,
                                        const OptionalTensor& mask, int64_t dim, double scale,
                                        bool is_causal) {
  dim = check_masked_softmax_backward(grad, output, mask, dim, is_causal);
  return compose_masked_softmax_backward(grad, output, mask, dim, scale, is_causal);
}

Tensor compose_log_softmax(const Tensor& self, int64_t dim) {
  check_defined("log_softmax", "input", self);
  return at::log_softmax(self, dim);
}

}  // namespace

Tensor compose_softmax(const Tensor& self, int64_t dim, double scale) {
  check_defined("softmax", "input", self);
  return at::softmax(scale == 1 ? self : scale == -1 ? at::neg(self) : at::mul(self, scale), dim);
}

Tensor compose_softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim,
                                double scale) {
  check_softmax_backward("softmax_backward", grad, output, dim);
  const Tensor dself = at::_softmax_backward_data(grad, output, dim, output.scalar_type());
  return scale == 1 ? dself : at::mul(dself, scale);
}

int64_t check_softmax_backward(const OperatorName& op, const Tensor& grad, const Tensor& output,
                               int64_t dim) {
  check_gradient(op, grad, "output", output);
  return at::maybe_wrap_dim(dim, output.dim());
}

namespace {

// `t` is what the mask masks, `name` what messages call it.
int64_t check_mask(const OperatorName& op, const char* name, const Tensor& t,
                   const OptionalTensor& mask, int64_t dim, bool is_causal) {
  check_defined(op, name, t);
  dim = at::maybe_wrap_dim(dim, t.dim());
  TORCH_CHECK(at::isFloatingType(t.scalar_type()), op, name,
              ": expected a floating-point dtype, got ", t.scalar_type());
  TORCH_CHECK(!(is_causal && is_defined(mask)), op,
              "mask: expected None with is_causal=True, got a tensor");
  TORCH_CHECK(!is_causal || (t.dim() >= 2 && dim == t.dim() - 1), op,
              "dim: expected the last of at least 2 dimensions with is_causal=True, got dimension ",
              dim, " of ", t.dim());
  if (!is_defined(mask)) {
    return dim;
  }
  TORCH_CHECK(mask->scalar_type() == at::kBool || mask->scalar_type() == t.scalar_type(), op,
              "mask: expected bool or the dtype of ", name, ", ", t.scalar_type(), ", got ",
              mask->scalar_type());
  TORCH_CHECK(mask->device() == t.device(), op, "mask: expected the device of ", name, ", ",
              t.device(), ", got ", mask->device());
  if (!has_sizes(t) || !has_sizes(*mask)) {
    return dim;
  }
  bool fits = mask->dim() <= t.dim();
  for (int64_t i = 1; fits && i <= mask->dim(); ++i) {
    fits = mask->sym_size(-i) == 1 || mask->sym_size(-i) == t.sym_size(-i);
  }
  TORCH_CHECK(fits, op, "mask: expected a shape that broadcasts to ", name, "'s, ", t.sym_sizes(),
              ", got ", mask->sym_sizes());
  return dim;
}

// True where an element takes part.
Tensor lower_triangle(const Tensor& like) {
  return at::ones_symint({like.sym_size(-2), like.sym_size(-1)}, like.options().dtype(at::kBool))
      .tril();
}

}  // namespace

int64_t check_masked_softmax(const Tensor& self, const OptionalTensor& mask, int64_t dim,
                             bool is_causal) {
  return check_mask("masked_softmax", "input", self, mask, dim, is_causal);
}

Tensor compose_masked_softmax(const Tensor& self, const OptionalTensor& mask, int64_t dim,
                              double scale, bool is_causal) {
  Tensor scores = scale == 1 ? self : at::mul(self, scale);
  const double masked = -std::numeric_limits<double>::infinity();
  if (is_causal) {
    scores = at::where(lower_triangle(self), scores, masked);
  } else if (is_defined(mask)) {
    scores = mask->scalar_type() == at::kBool ? at::where(*mask, scores, masked)
                                              : at::add(scores, *mask);
  }
  return at::softmax(scores, dim);
}

int64_t check_masked_softmax_backward(const Tensor& grad, const Tensor& output,
                                      const OptionalTensor& mask, int64_t dim, bool is_causal) {
  const OperatorName op("masked_softmax_backward");
  check_gradient(op, grad, "output", output);
  TORCH_CHECK(!is_defined(mask) || mask->scalar_type() == at::kBool, op,
              "mask: expected bool or None, got ", mask->scalar_type());
  return check_mask(op, "output", output, mask, dim, is_causal);
}

Tensor compose_masked_softmax_backward(const Tensor& grad, const Tensor& output,
                                       const OptionalTensor& mask, int64_t dim, double scale,
                                       bool is_causal) {
  const Tensor dself = compose_softmax_backward(grad, output, dim, scale);
  return is_causal          ? at::where(lower_triangle(output), dself, 0.)
         : is_defined(mask) ? at::where(*mask, dself, 0.)
                            : dself;
}

Tensor compose_log_softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim) {
  check_softmax_backward("log_softmax_backward", grad, output, dim);
  return at::_log_softmax_backward_data(grad, output, dim, output.scalar_type());
}

namespace {

const Registration register_softmax{softmax_op, Autograd<&softmax_autograd>{}, Cpu<&softmax_cpu>{},
                                    Fake<&softmax_meta>{}, Composed<&compose_softmax>{}};
const Registration register_softmax_backward{
    softmax_backward_op, Autograd<&softmax_backward_autograd>{}, Cpu<&softmax_backward_cpu>{},
    Fake<&softmax_backward_meta>{}, Composed<&compose_softmax_backward>{}};
const Registration register_log_softmax{log_softmax_op, Autograd<&log_softmax_autograd>{},
                                        Cpu<&log_softmax_cpu>{}, Fake<&log_softmax_meta>{},
                                        Composed<&compose_log_softmax>{}};
const Registration register_log_softmax_backward{
    log_softmax_backward_op, Autograd<&log_softmax_backward_autograd>{},
    Cpu<&log_softmax_backward_cpu>{}, Fake<&log_softmax_backward_meta>{},
    Composed<&compose_log_softmax_backward>{}};
const Registration register_masked_softmax{masked_softmax_op, Autograd<&masked_softmax_autograd>{},
                                           Cpu<&masked_softmax_cpu>{}, Fake<&masked_softmax_meta>{},
                                           Composed<&masked_softmax_composed>{}};
const Registration register_masked_softmax_backward{
    masked_softmax_backward_op, Autograd<&masked_softmax_backward_autograd>{},
    Cpu<&masked_softmax_backward_cpu>{}, Fake<&masked_softmax_backward_meta>{},
    Composed<&masked_softmax_backward_composed>{}};

}  // namespace

}  // namespace fastact
