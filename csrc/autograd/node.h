// What every autograd node of this folder needs; the only place that knows PyTorch's versions
// apart.
#pragma once

#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/version.h>

namespace fastact {

using torch::autograd::collect_next_edges;
using torch::autograd::compute_requires_grad;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::set_history;
using torch::autograd::variable_list;
using torch::dynamo::autograd::CompiledNodeArgs;
using torch::dynamo::autograd::SwapSavedVariables;

// Forward-mode derivatives run as the ATen composition: an operator's kernel would drop the tangent
// silently.
inline bool is_dual(const at::Tensor& t) {
  return t.defined() && t._fw_grad(/*level=*/0).defined();
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
