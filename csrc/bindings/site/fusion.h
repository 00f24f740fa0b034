// A layer of a site with what runs in its operator: found link by link, then called once.
#pragma once

#include <optional>

#include "bindings/site/geometry.h"

namespace fastact::site {

// Everything is owned, as other threads run while the operator does: the input by who calls the
// site. A Python reference costs 1 ns, a copied Tensor 10.
struct Fusion {
  const LayerKind* kind = nullptr;
  Geometry geometry;
  Object weight_object;
  const Tensor* input = nullptr;
  OptionalTensor bias, residual;
  const Epilogue* epilogue = nullptr;  // a row of a table, or `made`
  Object norm;
  std::optional<Pool> pool;
  bool has_links = false;
  Epilogue made;
  bool frozen = false;
  // The input lies channels last, where it would not as the program is written.
  bool is_turned = false;

  Fusion() = default;
  Fusion(const Fusion&) = delete;
  Fusion& operator=(const Fusion&) = delete;

  const Tensor& weight() const { return THPVariable_Unpack(weight_object.ptr()); }
  const Tensor& value() const { return *input; }
  bool needs_grad() const;

  Look take_layer(PyObject* layer, PyObject* value_item, bool may_pack);
  // Folded in evaluation, of features or channels, by statistics that it keeps, where nothing needs
  // a gradient.
  Look take_norm(PyObject* module, NormKind& kind);
  // `first`: it is the sum's first operand.
  Look take_residual(PyObject* other, bool first);
  // Whether the images may lie channels last meanwhile, where they would not as the program is
  // written: in inference. Convolutions are 1.05 to 4 times as fast so, PyTorch's max pool 6 to 25
  // times (2 threads, Zen 5).
  bool may_turn() const;
  Look take_pool(const Pool& pool);
  Look take(Found&& found);

  // Throws AskPython. `stays_turned`: what comes next takes the result channels last; only if
  // may_turn().
  Tensor run(bool saves_output, bool stays_turned) const;
};

// As the program would have it. Cloned, which gives PyTorch's strides even where a dimension has
// one element.
inline Tensor turned_back(const Tensor& images) {
  return images.clone(at::MemoryFormat::Contiguous);
}

// The fused call. Where the operator refuses the operands, nothing: the calls as written raise that
// error too, in eager's words. Not where a hook on saved tensors may have raised it: that has run.
std::optional<Tensor> try_run(const Fusion& fusion, bool saves_output = false,
                              bool stays_turned = false);

}  // namespace fastact::site
