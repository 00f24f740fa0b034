// What the operator of a convolution is told besides weight and bias, as its module has it.
#pragma once

#include "bindings/site/modules.h"

namespace fastact::site {

// Of a linear layer, nothing.
struct Geometry {
  using Numbers = c10::SmallVector<int64_t, 3>;
  Numbers stride, padding, dilation;
  int64_t groups = 1;
  // The setting that convert() has given the layer, if it has.
  std::optional<std::string> winograd;

  bool operator==(const Geometry& other) const {
    return stride == other.stride && padding == other.padding && dilation == other.dilation &&
           groups == other.groups && winograd == other.winograd;
  }
};

// From a module's dict. kPython where the padding goes by a name.
Look read_geometry(PyObject* own, int64_t dims, Geometry& geometry);

// As weights are packed with it: a tuple, empty without dimensions.
Object geometry_tuple(const Geometry& geometry);

// Whether the operator's result lies as PyTorch's convolution of this value lies.
bool lies_as_pytorchs(const Tensor& value, const Tensor& weight);

// Whether `other` has that result's shape and lies as it does, so that neither shape nor strides of
// a sum depend on which is added to which.
bool fits_result(const Tensor& other, const Tensor& value, const Tensor& weight,
                 const Geometry& geometry);

}  // namespace fastact::site
