#include "bindings/site/geometry.h"

#include "bindings/function.h"
#include "ops/conv/conv.h"

namespace fastact::site {
namespace {

bool read_numbers(PyObject* tuple, int64_t dims, Geometry::Numbers& numbers) {
  if (!tuple || !PyTuple_CheckExact(tuple) || PyTuple_GET_SIZE(tuple) != dims) {
    return false;
  }
  for (int64_t i = 0; i < dims; ++i) {
    Argument<int64_t> number;
    if (!number.read(PyTuple_GET_ITEM(tuple, i))) {
      return false;
    }
    numbers.push_back(number.value);
  }
  return true;
}

}  // namespace

Look read_geometry(PyObject* own, int64_t dims, Geometry& geometry) {
  const Names& n = names();
  PyObject* const mode = item(own, n.padding_mode);
  PyObject* const padding = item(own, n.padding);
  PyObject* const groups = item(own, n.groups);
  Argument<int64_t> number;
  if (!mode || !PyUnicode_CheckExact(mode) ||
      PyUnicode_CompareWithASCIIString(mode, "zeros") != 0 || !groups || !number.read(groups) ||
      !read_numbers(item(own, n.stride), dims, geometry.stride) ||
      !read_numbers(item(own, n.dilation), dims, geometry.dilation)) {
    return Look::kNo;
  }
  geometry.groups = number.value;
  if (PyObject* const winograd = item(own, n.winograd)) {
    geometry.winograd = pybind11::handle(winograd).cast<std::string>();
  }
  if (padding && PyUnicode_CheckExact(padding)) {
    return Look::kPython;
  }
  return read_numbers(padding, dims, geometry.padding) ? Look::kYes : Look::kNo;
}

Object geometry_tuple(const Geometry& geometry) {
  if (geometry.stride.empty()) {
    return pybind11::tuple();
  }
  const auto tuple = [](const Geometry::Numbers& numbers) {
    pybind11::tuple made(numbers.size());
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      made[i] = numbers[i];
    }
    return made;
  };
  return pybind11::make_tuple(tuple(geometry.stride), tuple(geometry.padding),
                              tuple(geometry.dilation), geometry.groups, geometry.winograd);
}

bool lies_as_pytorchs(const Tensor& value, const Tensor& weight) {
  return weight.dim() == 4 ||
         (weight.is_contiguous() && (weight.dim() == 3 || value.is_contiguous()));
}

bool fits_result(const Tensor& other, const Tensor& value, const Tensor& weight,
                 const Geometry& geometry) {
  if (other.dim() != value.dim() || other.sym_size(0) != value.sym_size(0) ||
      other.sym_size(1) != weight.sym_size(0)) {
    return false;
  }
  for (int64_t i = 0; i < weight.dim() - 2; ++i) {
    if (other.sym_size(i + 2) !=
        conv_output_size<c10::SymInt>(value.sym_size(i + 2), weight.sym_size(i + 2),
                                      geometry.stride[i], geometry.padding[i],
                                      geometry.dilation[i])) {
      return false;
    }
  }
  // In that order alone: of a single channel or pixel both may be said.
  const at::MemoryFormat last =
      weight.dim() == 5 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
  const bool is_last = weight.dim() == 4 && conv_memory_format(value, weight) == last;
  return other.is_contiguous() != is_last &&
         (weight.dim() == 3 || other.is_contiguous(last) == is_last);
}

}  // namespace fastact::site
