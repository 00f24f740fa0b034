// The packed weights of sites, and those with a batch norm folded in.
#pragma once

#include <array>
#include <vector>

#include "bindings/site/geometry.h"

namespace fastact::site {

// The packed weight, made where it is not the one that is kept.
Tensor packed_of(const LayerKind& kind, const Geometry& geometry, PyObject* weight);

// The same with a norm folded in, by the layer's weight and the norm.
struct Fact {
  PyObject* object;
  uint32_t version;
  const void* data;

  bool operator==(const Fact& other) const {
    return object == other.object && version == other.version && data == other.data;
  }
};

struct Folded {
  Geometry geometry;
  PyObject* norm;
  double eps;
  std::array<Fact, 6> facts;  // weight, bias, and the norm's tensors
  std::vector<int64_t> sizes, strides;
  Tensor weight, bias, packed;
};

// Null where a tensor has no version.
const Folded* folded_of(const LayerKind& kind, const Geometry& geometry, PyObject* weight_object,
                        const OptionalTensor& bias, PyObject* norm);

// forget_packed(address): of a Python object that is no more. Without one: all.
PyObject* forget_packed(PyObject*, PyObject* const* args, Py_ssize_t count);

}  // namespace fastact::site
