#include "bindings/site/weights.h"

#include "bindings/function.h"
#include "bindings/site/modules.h"

namespace fastact::site {
namespace {

// What fastact/conversion/packing.py keeps of a weight, by the address of its Python object;
// dropped with that. It keeps the weight's memory, so that no other tensor gets the address.
struct Packed {
  Geometry geometry;
  uint32_t version;
  const void* data;
  std::vector<int64_t> sizes, strides;
  Tensor packed;
};

std::unordered_map<PyObject*, Packed>& packed_weights() {
  static auto* const made = new std::unordered_map<PyObject*, Packed>;
  return *made;
}

std::unordered_map<PyObject*, Folded>& folded_weights() {
  static auto* const made = new std::unordered_map<PyObject*, Folded>;
  return *made;
}

}  // namespace

Tensor packed_of(const LayerKind& kind, const Geometry& geometry, PyObject* object) {
  const Tensor& weight = THPVariable_Unpack(object);
  auto& kept = packed_weights();
  const auto found = kept.find(object);
  const uint32_t version = weight._version();
  if (found != kept.end()) {
    const Packed& one = found->second;
    if (one.version == version && one.data == weight.const_data_ptr() &&
        weight.sizes() == one.sizes && weight.strides() == one.strides &&
        geometry == one.geometry) {
      return one.packed;
    }
  }
  const Object made =
      tables().pack(kind.function, pybind11::handle(object), geometry_tuple(geometry));
  const Tensor packed = THPVariable_Unpack(made.ptr());
  kept[object] = {
      geometry, version, weight.const_data_ptr(), weight.sizes().vec(), weight.strides().vec(),
      packed};
  return packed;
}

const Folded* folded_of(const LayerKind& kind, const Geometry& geometry, PyObject* weight_object,
                        const OptionalTensor& bias, PyObject* norm) {
  const Object own = instance_dict(norm);
  Argument<double> number;
  PyObject* const eps_item = own ? item(own.ptr(), names().eps) : nullptr;
  if (!eps_item || !number.read(eps_item)) {
    return nullptr;
  }
  const double eps = number.get();
  const Tensor& weight = THPVariable_Unpack(weight_object);
  std::array<Fact, 6> facts{};
  bool has_versions = true;
  const auto fact = [&](PyObject* object, const Tensor& t) {
    has_versions = has_versions && !t.is_inference();
    return has_versions ? Fact{object, static_cast<uint32_t>(t._version()), t.const_data_ptr()}
                        : Fact{};
  };
  facts[0] = fact(weight_object, weight);
  if (bias) {
    facts[1] = fact(nullptr, *bias);
  }
  const auto tensors = norm_tensors(own.ptr());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i] != Py_None) {
      facts[2 + i] = fact(tensors[i], THPVariable_Unpack(tensors[i]));
    }
  }
  if (!has_versions) {
    return nullptr;
  }
  auto& kept = folded_weights();
  const auto found = kept.find(weight_object);
  if (found != kept.end() && found->second.norm == norm && found->second.eps == eps &&
      found->second.facts == facts && geometry == found->second.geometry &&
      weight.sizes() == found->second.sizes && weight.strides() == found->second.strides) {
    return &found->second;
  }
  const Object bias_object =
      bias ? pybind11::reinterpret_steal<Object>(THPVariable_Wrap(*bias)) : pybind11::none();
  const auto made = tables()
                        .fold(kind.function, pybind11::handle(weight_object), bias_object,
                              pybind11::handle(norm), geometry_tuple(geometry))
                        .cast<pybind11::tuple>();
  const auto tensor = [&](int i) { return THPVariable_Unpack(made[i].ptr()); };
  Folded& entry = kept[weight_object];
  entry = {geometry,  norm,      eps,      facts, weight.sizes().vec(), weight.strides().vec(),
           tensor(0), tensor(1), tensor(2)};
  return &entry;
}

PyObject* forget_packed(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count == 1) {
    PyObject* const object = static_cast<PyObject*>(PyLong_AsVoidPtr(args[0]));
    packed_weights().erase(object);
    folded_weights().erase(object);
  } else {
    packed_weights().clear();
    folded_weights().clear();
  }
  Py_RETURN_NONE;
}

}  // namespace fastact::site
