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
const auto& log_softmax_backward_operator() {
  static const auto handle = find_operator<LogSoftmaxBackwardSchema>("log_softmax_backward");
  return handle;
}

// Softmax, log_softmax and masked_softmax, of which the last has the mask as its second input.
struct SoftmaxNode final : torch::autograd::TraceableFunction {
  const char* operator_name = "softmax";
  bool log = false;
  int64_t dim = 0;
  double scale = 1;
  std::vector<c10::SymInt> mask_sizes;
  SavedVariable output;

  std::string name() const override { return std::string("fastact::") + operator_name; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    output.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(num_outputs());
    if (!grads[0].defined()) {
      return result;
    }
    const Tensor y = output.unpack(getptr());
    if (num_outputs() == 1 || !task_should_compute_output(1)) {
      if (task_should_compute_output(0)) {
        result[0] = log ? log_softmax_backward(grads[0], y, dim)
                        : softmax_backward(grads[0], y, dim, scale);
      }
      return result;
    }
    // An additive mask's gradient is that of the scores, summed over where it was broadcast.
    const Tensor scores = softmax_backward(grads[0], y, dim, 1);
    result[0] = scale == 1 ? scores : at::mul(scores, scale);
    result[1] = scores.sum_to_size_symint(mask_sizes);
    return result;
  }

  void compiled_args(CompiledNodeArgs& args) const override {
    args.collect(log);
    args.collect(dim);
    args.collect(scale);
    args.collect(mask_sizes);
    args.collect(output, /*is_output=*/true);
  }

  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& swap) override {
    swap.before(mask_sizes);
    swap.before(output);
    variable_list result = apply(variable_list(grads));
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
template <class Compute, class Describe, class... T>
Tensor record(const Compute& compute, const Describe& describe, const T&... inputs) {
  const auto node = make_node<SoftmaxNode>(inputs...);
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
  return record(
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
  return record(
      [&] {
        return log_softmax_operator().redispatch(keys & c10::after_autograd_keyset, self, dim);
      },
      [&](SoftmaxNode& node) {
        node.operator_name = "log_softmax";
        node.log = true;
        node.dim = dim;
      },
      self);
}

using MaskedSoftmax = Tensor(const Tensor&, const std::optional<Tensor>&, int64_t, double, bool);

Tensor masked_softmax_autograd(c10::DispatchKeySet keys, const Tensor& self,
                               const std::optional<Tensor>& mask_, int64_t dim, double scale,
                               bool is_causal) {
  const Tensor mask = mask_ ? *mask_ : Tensor();
  if (C10_UNLIKELY(!differentiated_here(self) || is_dual(mask))) {
    return compose_masked_softmax(self, mask_, check_masked_softmax(self, mask_, dim, is_causal),
                                  scale, is_causal);
  }
  static const auto handle = find_operator<MaskedSoftmax>("masked_softmax");
  return record(
      [&] {
        return handle.redispatch(keys & c10::after_autograd_keyset, self, mask_, dim, scale,
                                 is_causal);
      },
      [&](SoftmaxNode& node) {
        node.operator_name = "masked_softmax";
        node.dim = dim;
        node.scale = scale;
        if (mask.defined()) {
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
  return softmax_backward_operator().redispatch(keys & c10::after_autograd_keyset, grad, output,
                                                dim, scale);
}

Tensor log_softmax_backward_autograd(c10::DispatchKeySet keys, const Tensor& grad,
                                     const Tensor& output, int64_t dim) {
  if (composed_backward(grad, output)) {
    return compose_log_softmax_backward(grad, output, dim);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return log_softmax_backward_operator().redispatch(keys & c10::after_autograd_keyset, grad, output,
                                                    dim);
}

Tensor masked_softmax_meta(const Tensor& self, const std::optional<Tensor>& mask, int64_t dim,
                           double scale, bool is_causal) {
  dim = check_masked_softmax(self, mask, dim, is_causal);
  return is_kernel_dtype(self.scalar_type())
             ? at::empty_symint(self.sym_sizes(), self.options())
             : compose_masked_softmax(self, mask, dim, scale, is_causal);
}

Tensor masked_softmax_composed(const Tensor& self, const std::optional<Tensor>& mask, int64_t dim,
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

Tensor softmax_backward_meta(const Tensor&, const Tensor& output, int64_t dim, double) {
  return contiguous_meta(output, dim);
}

Tensor log_softmax_backward_meta(const Tensor&, const Tensor& output, int64_t dim) {
  return contiguous_meta(output, dim);
}

Tensor compose_log_softmax(const Tensor& self, int64_t dim) { return at::log_softmax(self, dim); }

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
  return at::softmax(scale == 1 ? self : scale == -1 ? at::neg(self) : at::mul(self, scale), dim);
}

Tensor compose_softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim,
                                double scale) {
  const Tensor dself = at::_softmax_backward_data(grad, output, dim, output.scalar_type());
  return scale == 1 ? dself : at::mul(dself, scale);
}

int64_t check_masked_softmax(const Tensor& self, const std::optional<Tensor>& mask, int64_t dim,
                             bool is_causal) {
  dim = at::maybe_wrap_dim(dim, self.dim());
  const bool has_mask = mask && mask->defined();
  TORCH_CHECK(at::isFloatingType(self.scalar_type()),
              "fastact.masked_softmax(): input: expected a floating-point dtype, got ",
              self.scalar_type());
  TORCH_CHECK(!(is_causal && has_mask),
              "fastact.masked_softmax(): mask: expected None with is_causal=True, got a tensor");
  TORCH_CHECK(!is_causal || (self.dim() >= 2 && dim == self.dim() - 1),
              "fastact.masked_softmax(): dim: expected the last of at least 2 dimensions with "
              "is_causal=True, got dimension ",
              dim, " of ", self.dim());
  if (!has_mask) {
    return dim;
  }
  TORCH_CHECK(mask->scalar_type() == at::kBool || mask->scalar_type() == self.scalar_type(),
              "fastact.masked_softmax(): mask: expected bool or the dtype of input, ",
              self.scalar_type(), ", got ", mask->scalar_type());
  TORCH_CHECK(mask->device() == self.device(),
              "fastact.masked_softmax(): mask: expected the device of input, ", self.device(),
              ", got ", mask->device());
  bool fits = mask->dim() <= self.dim();
  for (int64_t i = 1; fits && i <= mask->dim(); ++i) {
    fits = mask->sym_size(-i) == 1 || mask->sym_size(-i) == self.sym_size(-i);
  }
  TORCH_CHECK(fits, "fastact.masked_softmax(): mask: expected a shape that broadcasts to input's, ",
              self.sym_sizes(), ", got ", mask->sym_sizes());
  return dim;
}

Tensor compose_masked_softmax(const Tensor& self, const std::optional<Tensor>& mask, int64_t dim,
                              double scale, bool is_causal) {
  Tensor scores = scale == 1 ? self : at::mul(self, scale);
  const double masked = -std::numeric_limits<double>::infinity();
  if (is_causal) {
    const Tensor lower =
        at::ones_symint({self.sym_size(-2), self.sym_size(-1)}, self.options().dtype(at::kBool))
            .tril();
    scores = at::where(lower, scores, masked);
  } else if (mask && mask->defined()) {
    scores = mask->scalar_type() == at::kBool ? at::where(*mask, scores, masked)
                                              : at::add(scores, *mask);
  }
  return at::softmax(scores, dim);
}

Tensor compose_log_softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim) {
  return at::_log_softmax_backward_data(grad, output, dim, output.scalar_type());
}

#define FASTACT_FOR_COMPOSED(m)                                   \
  m.impl("softmax", TORCH_FN(compose_softmax));                   \
  m.impl("softmax_backward", TORCH_FN(compose_softmax_backward)); \
  m.impl("log_softmax", TORCH_FN(compose_log_softmax));           \
  m.impl("masked_softmax", TORCH_FN(masked_softmax_composed));    \
  m.impl("log_softmax_backward", TORCH_FN(compose_log_softmax_backward));

TORCH_LIBRARY_IMPL(fastact, Autograd, m) {
  m.impl("softmax", TORCH_FN(softmax_autograd));
  m.impl("softmax_backward", TORCH_FN(softmax_backward_autograd));
  m.impl("log_softmax", TORCH_FN(log_softmax_autograd));
  m.impl("masked_softmax", TORCH_FN(masked_softmax_autograd));
  m.impl("log_softmax_backward", TORCH_FN(log_softmax_backward_autograd));
}

TORCH_LIBRARY_IMPL(fastact, Meta, m) {
  m.impl("softmax", TORCH_FN(softmax_meta));
  m.impl("softmax_backward", TORCH_FN(softmax_backward_meta));
  m.impl("log_softmax", TORCH_FN(log_softmax_meta));
  m.impl("masked_softmax", TORCH_FN(masked_softmax_meta));
  m.impl("log_softmax_backward", TORCH_FN(log_softmax_backward_meta));
}

TORCH_LIBRARY_IMPL(fastact, CompositeExplicitAutograd, m){FASTACT_FOR_COMPOSED(m)}

TORCH_LIBRARY_IMPL(fastact, NestedTensorCPU, m) {
  FASTACT_FOR_COMPOSED(m)
}

}  // namespace fastact
