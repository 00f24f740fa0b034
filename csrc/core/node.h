// The base of autograd nodes; the only place that knows PyTorch's versions apart.
#pragma once

#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/version.h>

#include <algorithm>
#include <optional>
#include <type_traits>

namespace fastact {

using torch::autograd::collect_next_edges;
using torch::autograd::compute_requires_grad;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::set_history;
using torch::autograd::variable_list;
using torch::dynamo::autograd::CompiledNodeArgs;
using torch::dynamo::autograd::SwapSavedVariables;

// A node. Derived lists what it keeps once:
//   void each_saved(f)      f(saved variable, whether it is an output) for each tensor
//   void each_attribute(f)  f(value) for everything else that backward() depends on
//   void backward(grad, gradients)  fills in the gradients that task_should_compute_output(); grad
//                                   is that of the output, or, where it takes a variable_list,
//                                   those of all outputs, undefined where there is none
// and has a name(). Releasing, compiled autograd and locking follow.
template <class Derived>
struct OperatorNode : torch::autograd::TraceableFunction {
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    derived().each_saved([](SavedVariable& variable, bool) { variable.reset_data(); });
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list gradients(num_outputs());
    constexpr bool kTakesAll = std::is_invocable_v<decltype(&Derived::backward), Derived&,
                                                   const variable_list&, variable_list&>;
    if constexpr (kTakesAll) {
      const auto defined = [](const at::Tensor& grad) { return grad.defined(); };
      if (std::any_of(grads.begin(), grads.end(), defined)) {
        derived().backward(grads, gradients);
      }
    } else if (grads[0].defined()) {
      derived().backward(grads[0], gradients);
    }
    return gradients;
  }

  void compiled_args(CompiledNodeArgs& args) const override {
    Derived& self = const_cast<OperatorNode*>(this)->derived();
    self.each_attribute([&](const auto& value) { args.collect(value); });
    self.each_saved(
        [&](SavedVariable& variable, bool is_output) { args.collect(variable, is_output); });
  }

  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& swap) override {
    const auto swap_attribute = [&](auto& value, auto exchange) {
      using Value = std::decay_t<decltype(value)>;
      if constexpr (std::is_same_v<Value, c10::SymInt> ||
                    std::is_same_v<Value, std::vector<c10::SymInt>>) {
        exchange(value);
      }
    };
    derived().each_attribute(
        [&](auto& value) { swap_attribute(value, [&](auto& v) { swap.before(v); }); });
    derived().each_saved([&](SavedVariable& variable, bool) { swap.before(variable); });
    variable_list gradients = apply(variable_list(grads));
    derived().each_saved([&](SavedVariable& variable, bool) { swap.after(variable); });
    derived().each_attribute(
        [&](auto& value) { swap_attribute(value, [&](auto& v) { swap.after(v); }); });
    return gradients;
  }

 private:
  Derived& derived() { return static_cast<Derived&>(*this); }
};

// As operators take what a node has unpacked.
inline std::optional<at::Tensor> none_if_undefined(at::Tensor t) {
  return t.defined() ? std::optional(std::move(t)) : std::nullopt;
}

// Forward-mode derivatives run as the ATen composition: an operator's kernel would drop the tangent
// silently.
inline bool is_dual(const at::Tensor& t) {
  return t.defined() && t._fw_grad(/*level=*/0).defined();
}

template <class... T>
bool any_dual(const T&... tensors) {
  return (is_dual(tensors) || ...);
}

// What a node keeps of a weight. PyTorch's linear keeps weight.t(): a view, which a later
// `weight.data = ...` does not reach, and whose version is the weight's.
inline at::Tensor alias_of(const at::Tensor& weight) {
  if (weight.is_inference() || at::isTensorSubclassLike(weight)) {
    return weight;
  }
  c10::TensorImpl* impl = weight.unsafeGetTensorImpl();
  at::Tensor alias(impl->shallow_copy_and_detach(impl->version_counter(),
                                                 /*allow_tensor_metadata_change=*/false));
  if (weight.requires_grad()) {
    torch::autograd::impl::set_gradient_edge(alias, torch::autograd::impl::gradient_edge(weight));
  }
  return alias;
}

// Tells PyTorch's node-creation hooks; call once the node holds what it saves.
inline void node_is_complete(const c10::intrusive_ptr<Node>& node) {
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 14
  torch::autograd::fire_node_creation_hooks(node);
#else
  (void)node;
#endif
}

// A new node of type N with edges to the inputs, or null where none of them requires grad.
template <class N, class... T>
c10::intrusive_ptr<N> make_node(const T&... inputs) {
  if (!compute_requires_grad(inputs...)) {
    return {};
  }
  auto node = c10::make_intrusive<N>();
  node->set_next_edges(collect_next_edges(inputs...));
  return node;
}

}  // namespace fastact
