// Autograd of softmax and log_softmax, their fake kernels, and the ATen composition.
#include "softmax.h"

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
#include <torch/library.h>

#include "activation.h"
#include "autograd/node.h"
#include "core/registration.h"
#include "operators.h"

namespace fastact {
namespace {

using Softmax = Tensor(const Tensor&, int64_t, double);
using SoftmaxBackwardSchema = Tensor(const Tensor&, const Tensor&, int64_t, double);
using LogSoftmax = Tensor(const Tensor&, int64_t);
using LogSoftmaxBackwardSchema = Tensor(const Tensor&, const Tensor&, int64_t);

const auto& softmax_operator() {
  static const auto handle = find_operator<Softmax>("softmax");
  return handle;
}
const auto& softmax_backward_operator() {
  static const auto handle = find_operator<SoftmaxBackwardSchema>("softmax_backward");
  return handle;
}
const auto& log_softmax_operator() {
  static const auto handle = find_operator<LogSoftmax>("log_softmax");
  return handle;
}
const auto& masked_softmax_backward_operator() {
  using Schema = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, int64_t, double, bool);
  static const auto handle = find_operator<Schema>("masked_softmax_backward");
  return handle;
}
const auto& log_softmax_backward_operator() {
  static const auto handle = find_operator<LogSoftmaxBackwardSchema>("log_softmax_backward");
  return handle;
}

struct SoftmaxNode final : torch::autograd::TraceableFunction {
  bool log = false;
  int64_t dim = 0;
  double scale = 1;
  SavedVariable output;

  std::string name() const override { return log ? "fastact::log_softmax" : "fastact::softmax"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    output.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(1);
    if (grads[0].defined() && task_should_compute_output(0)) {
      const Tensor y = output.unpack(getptr());
      result[0] =
          log ? log_softmax_backward(grads[0], y, dim) : softmax_backward(grads[0], y, dim, scale);
    }
    return result;
  }

  void compiled_args(CompiledNodeArgs& args) const override {
    args.collect(log);
    args.collect(dim);
    args.collect(scale);
    args.collect(output, /*is_output=*/true);
  }

  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& swap) override {
    swap.before(output);
    variable_list result = apply(variable_list(grads));
    swap.after(output);
    return result;
  }
};

// The inputs are the scores and the mask.
struct MaskedSoftmaxNode final : torch::autograd::TraceableFunction {
  int64_t dim = 0;
  double scale = 1;
  bool is_causal = false;
  std::vector<c10::SymInt> mask_sizes;
  SavedVariable output;
  SavedVariable selection;  // a boolean mask

  std::string name() const override { return "fastact::masked_softmax"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    output.reset_data();
    selection.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(2);
    const bool for_mask = task_should_compute_output(1);
    if (!grads[0].defined() || !(for_mask || task_should_compute_output(0))) {
      return result;
    }
    const Tensor mask = selection.unpack();
    const Tensor scores = masked_softmax_backward_operator().call(
        grads[0], output.unpack(getptr()), mask.defined() ? OptionalTensor(mask) : std::nullopt,
        dim, for_mask ? 1 : scale, is_causal);
    if (!for_mask) {
      result[0] = scores;
      return result;
    }
    // An additive mask's gradient is that of the scores, summed over where it was broadcast.
    if (task_should_compute_output(0)) {
      result[0] = scale == 1 ? scores : at::mul(scores, scale);
    }
    result[1] = scores.sum_to_size_symint(mask_sizes);
    return result;
  }

  void compiled_args(CompiledNodeArgs& args) const override {
    args.collect(dim);
    args.collect(scale);
    args.collect(is_causal);
    args.collect(mask_sizes);
    args.collect(output, /*is_output=*/true);
    args.collect(selection, /*is_output=*/false);
  }

  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& swap) override {
    swap.before(mask_sizes);
    swap.before(output);
    swap.before(selection);
    variable_list result = apply(variable_list(grads));
    swap.after(selection);
    swap.after(output);
    swap.after(mask_sizes);
    return result;
  }
};

bool differentiated_here(const Tensor& self) {
  return is_kernel_dtype(self.scalar_type()) && self.layout() == at::kStrided &&
         !self.is_nested() && !is_dual(self);
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
      [&] {
        return softmax_operator().redispatch(keys & c10::after_autograd_keyset, self, dim, scale);
      },
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
      [&] {
        return log_softmax_operator().redispatch(keys & c10::after_autograd_keyset, self, dim);
      },
      [&](SoftmaxNode& node) {
        node.log = true;
        node.dim = dim;
      },
      self);
}

using MaskedSoftmax = Tensor(const Tensor&, const OptionalTensor&, int64_t, double, bool);

Tensor masked_softmax_autograd(c10::DispatchKeySet keys, const Tensor& self,
                               const OptionalTensor& mask_, int64_t dim, double scale,
                               bool is_causal) {
  const Tensor& mask = value_or_undefined(mask_);
  if (C10_UNLIKELY(!differentiated_here(self) || is_dual(mask))) {
    return compose_masked_softmax(self, mask_, check_masked_softmax(self, mask_, dim, is_causal),
                                  scale, is_causal);
  }
  static const auto handle = find_operator<MaskedSoftmax>("masked_softmax");
  return record<MaskedSoftmaxNode>(
      [&] {
        return handle.redispatch(keys & c10::after_autograd_keyset, self, mask_, dim, scale,
                                 is_causal);
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
  check_softmax_backward("softmax_backward", grad, output, dim);
  if (composed_backward(grad, output)) {
    return compose_softmax_backward(grad, output, dim, scale);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return softmax_backward_operator().redispatch(keys & c10::after_autograd_keyset, grad, output,
                                                dim, scale);
}

Tensor log_softmax_backward_autograd(c10::DispatchKeySet keys, const Tensor& grad,
                                     const Tensor& output, int64_t dim) {
  check_softmax_backward("log_softmax_backward", grad, output, dim);
  if (composed_backward(grad, output)) {
    return compose_log_softmax_backward(grad, output, dim);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return log_softmax_backward_operator().redispatch(keys & c10::after_autograd_keyset, grad, output,
                                                    dim);
}

Tensor masked_softmax_backward_autograd(c10::DispatchKeySet keys, const Tensor& grad,
                                        const Tensor& output, const OptionalTensor& mask,
                                        int64_t dim, double scale, bool is_causal) {
  check_masked_softmax_backward(grad, output, mask, dim, is_causal);
  if (composed_backward(grad, output)) {
    return compose_masked_softmax_backward(grad, output, mask, dim, scale, is_causal);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return masked_softmax_backward_operator().redispatch(keys & c10::after_autograd_keyset, grad,
                                                       output, mask, dim, scale, is_causal);
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

Tensor softmax(const Tensor& self, int64_t dim, double scale) {
  return softmax_operator().call(self, dim, scale);
}

Tensor log_softmax(const Tensor& self, int64_t dim) {
  return log_softmax_operator().call(self, dim);
}

Tensor softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim, double scale) {
  return softmax_backward_operator().call(grad, output, dim, scale);
}

Tensor log_softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim) {
  return log_softmax_backward_operator().call(grad, output, dim);
}

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

TORCH_LIBRARY_IMPL(fastact, Autograd, m) {
  m.impl("softmax", TORCH_FN(softmax_autograd));
  m.impl("softmax_backward", TORCH_FN(softmax_backward_autograd));
  m.impl("log_softmax", TORCH_FN(log_softmax_autograd));
  m.impl("masked_softmax", TORCH_FN(masked_softmax_autograd));
  m.impl("log_softmax_backward", TORCH_FN(log_softmax_backward_autograd));
  m.impl("masked_softmax_backward", TORCH_FN(masked_softmax_backward_autograd));
}

TORCH_LIBRARY_IMPL(fastact, Meta, m) {
  m.impl("softmax", TORCH_FN(softmax_meta));
  m.impl("softmax_backward", TORCH_FN(softmax_backward_meta));
  m.impl("log_softmax", TORCH_FN(log_softmax_meta));
  m.impl("masked_softmax", TORCH_FN(masked_softmax_meta));
  m.impl("log_softmax_backward", TORCH_FN(log_softmax_backward_meta));
  m.impl("masked_softmax_backward", TORCH_FN(masked_softmax_backward_meta));
}

FASTACT_IMPL_COMPOSITIONS(m) {
  m.impl("softmax", TORCH_FN(compose_softmax));
  m.impl("softmax_backward", TORCH_FN(compose_softmax_backward));
  m.impl("log_softmax", TORCH_FN(compose_log_softmax));
  m.impl("log_softmax_backward", TORCH_FN(compose_log_softmax_backward));
  m.impl("masked_softmax", TORCH_FN(masked_softmax_composed));
  m.impl("masked_softmax_backward", TORCH_FN(masked_softmax_backward_composed));
}

}  // namespace fastact
