// A layer of a site with what runs in its operator: found link by link, then called once.
#pragma once

#include <optional>

#include "bindings/site/geometry.h"

namespace fastact::site {

// What a link was found to be: a row of a table, or what was read off it.
struct Found {
  const Epilogue* row = nullptr;
  Epilogue read;

  const Epilogue& get() const { return row ? *row : read; }
};

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
  bool has_links = false;
  Epilogue made;
  bool frozen = false;

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
  Look take(Found&& found);

  // Throws AskPython.
  Tensor run(bool saves_output) const;
};

// The fused call. Where the operator refuses the operands, nothing: the calls as written raise that
// error too, in eager's words. Not where a hook on saved tensors may have raised it: that has run.
std::optional<Tensor> try_run(const Fusion& fusion, bool saves_output);

}  // namespace fastact::site
