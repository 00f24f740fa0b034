// The call of a site of a converted model (fastact/conversion/site.py, which says what a site is
// and decides in full). Here the decisions that are common are confirmed by comparing pointers: 0.1
// us for a layer and 0.05 for an activation, where Python takes 10 (Zen 5).
//
// Looking at a chain runs nobody's code. So whatever is not common is left to Python, from the
// start; and what is not to be fused is called as it was written.
#include "bindings/site.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "bindings/function.h"
#include "core/operator.h"
#include "ops/linear/linear.h"

namespace fastact {
namespace {

using Object = pybind11::object;

// ---- what Python sets up -----------------------------------------------------------------------

// A class as it was when somebody last made sure that nothing of it was replaced. Every change of a
// class or of its bases gives it another version, and no two classes have the same.
struct Born {
  Object forward;
  unsigned int version = 0;
};

// What a forward of torch.nn calls, and that it still is PyTorch's own.
struct Called {
  Object scope;  // the dict of torch.nn.functional, or torch
  Object name;
  Object function;

  bool is_untouched() const {
    return !scope || PyDict_GetItemWithError(scope.ptr(), name.ptr()) == function.ptr();
  }
};

struct LayerKind {
  Born born;
  Called called;
  bool has_own_activation = false;  // fastact.nn's may have one
};

struct ActivationKind {
  Born born;
  Called called;
  std::string name;
  std::vector<Object> attributes;
  std::vector<double> constants;
  Object variant;  // the attribute that decides between
  std::vector<std::pair<Object, std::string>> variants;
  bool has_slope = false;
  bool takes_dim = false;  // its attribute is a dimension, which is no float
};

struct IdleKind {
  Born born;
  Called called;
  bool is_dropout = false;
};

// A batch norm that is folded into the layer before it.
struct NormKind {
  Born born;
  Called called;
};

struct Epilogue {
  bool idle = false;
  bool in_place = false;
  std::string name;
  c10::SmallVector<double, 4> parameters;
  OptionalTensor slope;
};

// What a link was found to be: a row of a table, or what was read off it.
struct Found {
  const Epilogue* row = nullptr;
  Epilogue read;

  const Epilogue& get() const { return row ? *row : read; }
};

struct Tables {
  PyTypeObject* module_type = nullptr;
  Object module_call, call_impl, wrapped_call_impl, module_getattr, object_getattribute;
  Object sequential_iter;
  std::vector<Object> global_hooks;
  std::unordered_map<PyTypeObject*, LayerKind> layers;
  std::unordered_map<PyTypeObject*, ActivationKind> activations;
  std::unordered_map<PyTypeObject*, IdleKind> idle;
  std::unordered_map<PyTypeObject*, NormKind> norms;
  std::unordered_map<PyObject*, Epilogue> functions;  // called with the input alone
  std::unordered_map<std::string, Object> methods;    // of Tensor, as PyTorch was born with them
  std::unordered_set<PyObject*> sums;
  std::unordered_set<std::string> keeps_result;
  Object asks_python;  // of a class: whether only Python can tell what its modules are
  Object classify;     // the epilogue of a function with these arguments
  Object pack;
  Object fold;
  Object run_sequence;
};

// Leaked: Python objects must not be released when the process ends.
Tables& tables() {
  static auto* const made = new Tables;
  return *made;
}

// Whether somebody observes sites (explain): then Python runs them.
bool is_observed = false;

struct Names {
  Object forward{pybind11::str("forward")}, weight{pybind11::str("weight")},
      bias{pybind11::str("bias")}, parameters{pybind11::str("_parameters")},
      buffers{pybind11::str("_buffers")}, modules{pybind11::str("_modules")},
      forward_hooks{pybind11::str("_forward_hooks")},
      forward_pre_hooks{pybind11::str("_forward_pre_hooks")},
      backward_hooks{pybind11::str("_backward_hooks")},
      backward_pre_hooks{pybind11::str("_backward_pre_hooks")},
      compiled{pybind11::str("_compiled_call_impl")}, left_out{pybind11::str("_fastact_left_out")},
      call{pybind11::str("__call__")}, call_impl{pybind11::str("_call_impl")},
      wrapped_call_impl{pybind11::str("_wrapped_call_impl")}, getattr{pybind11::str("__getattr__")},
      getattribute{pybind11::str("__getattribute__")}, in_place{pybind11::str("inplace")},
      training{pybind11::str("training")}, p{pybind11::str("p")}, fused{pybind11::str("fused")},
      name{pybind11::str("name")}, iter{pybind11::str("__iter__")}, add{pybind11::str("add")},
      values{pybind11::str("values")}, is_module{pybind11::str("is_module")},
      eps{pybind11::str("eps")}, running_mean{pybind11::str("running_mean")},
      running_var{pybind11::str("running_var")};

  Names() {
    for (Object* one = &forward; one <= &running_var; ++one) {
      PyObject* text = one->release().ptr();
      PyUnicode_InternInPlace(&text);
      *one = pybind11::reinterpret_steal<Object>(text);
    }
  }
};

const Names& names() {
  static const auto* const made = new Names;
  return *made;
}

bool is_plain(PyObject* object) { return THPVariable_CheckExact(object); }

PyObject* item(PyObject* dict, const Object& name) {
  return PyDict_GetItemWithError(dict, name.ptr());
}

bool has(PyObject* dict, const Object& name) { return item(dict, name) != nullptr; }

// ---- looking -----------------------------------------------------------------------------------

// How looking ends: known, not to be fused, or for Python to say.
enum class Look { kYes, kNo, kPython };

Object instance_dict(PyObject* object) {
  PyObject* dict = PyObject_GenericGetDict(object, nullptr);
  if (!dict) {
    PyErr_Clear();
  }
  return pybind11::reinterpret_steal<Object>(dict);
}

unsigned int version_of(PyTypeObject* type) {
#if PY_VERSION_HEX < 0x030D0000
  return PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG) ? type->tp_version_tag : 0;
#else
  return type->tp_version_tag;
#endif
}

// Whether a call of the class runs the forward it was born with.
bool is_as_born(PyTypeObject* type, Born& born) {
  const unsigned int version = version_of(type);
  if (version != 0 && version == born.version) {
    return true;
  }
  const Tables& t = tables();
  const bool same =
      _PyType_Lookup(type, names().forward.ptr()) == born.forward.ptr() &&
      _PyType_Lookup(type, names().call.ptr()) == t.module_call.ptr() &&
      _PyType_Lookup(type, names().call_impl.ptr()) == t.call_impl.ptr() &&
      _PyType_Lookup(type, names().wrapped_call_impl.ptr()) == t.wrapped_call_impl.ptr();
  // The look-ups have given the class a version.
  born.version = same ? version_of(type) : 0;
  return same;
}

bool is_empty(PyObject* dict, const Object& name) {
  PyObject* hooks = item(dict, name);
  return hooks && PyDict_Check(hooks) && PyDict_GET_SIZE(hooks) == 0;
}

// Whether a call of the module does nothing but run its class's forward.
bool is_undisturbed(PyObject* own) {
  const Names& n = names();
  return is_empty(own, n.forward_hooks) && is_empty(own, n.forward_pre_hooks) &&
         is_empty(own, n.backward_hooks) && is_empty(own, n.backward_pre_hooks) &&
         !has(own, n.forward) && !has(own, n.compiled) && !has(own, n.left_out);
}

// Whether calls may be left out now. Modes, and somebody who observes, are for Python.
Look surroundings() {
  if (is_observed || at::impl::torch_function_mode_enabled() ||
      c10::impl::TorchDispatchModeTLS::stack_len() > 0) {
    return Look::kPython;
  }
  if (torch::jit::tracer::isTracing()) {
    return Look::kNo;
  }
  for (const Object& hooks : tables().global_hooks) {
    if (PyDict_GET_SIZE(hooks.ptr()) != 0) {
      return Look::kPython;  // it may only observe
    }
  }
  return Look::kYes;
}

// A layer with what runs in its operator. Everything is owned, as other threads run while it does:
// the input by who calls the site. A Python reference costs 1 ns, a copied Tensor 10.
struct Fusion {
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

  bool needs_grad() const {
    return c10::GradMode::is_enabled() &&
           (value().requires_grad() || weight().requires_grad() ||
            (bias && bias->requires_grad()) || (residual && residual->requires_grad()) ||
            (epilogue && epilogue->slope && epilogue->slope->requires_grad()));
  }

  Look take_layer(PyObject* layer, PyObject* value_item, bool may_pack) {
    Tables& t = tables();
    const auto found = t.layers.find(Py_TYPE(layer));
    if (found == t.layers.end()) {
      return Look::kNo;
    }
    LayerKind& kind = found->second;
    const Names& n = names();
    const Object own = instance_dict(layer);
    if (!own || !is_as_born(Py_TYPE(layer), kind.born) || !is_undisturbed(own.ptr()) ||
        !kind.called.is_untouched() || has(own.ptr(), n.weight) || has(own.ptr(), n.bias) ||
        !is_plain(value_item)) {
      return Look::kNo;
    }
    if (kind.has_own_activation) {
      PyObject* const fused = item(own.ptr(), n.fused);
      if (!fused) {
        return Look::kNo;
      }
      const auto get = [&](const Object& name) {
        return pybind11::reinterpret_steal<Object>(PyObject_GetAttr(fused, name.ptr()));
      };
      const Object name = get(n.name), is_module = get(n.is_module);
      if (!name || !name.is_none() || is_module.ptr() != Py_False) {
        PyErr_Clear();
        return Look::kPython;
      }
    }
    PyObject* const parameters = item(own.ptr(), n.parameters);
    if (!parameters || !PyDict_Check(parameters)) {
      return Look::kNo;
    }
    PyObject* const weight_item = item(parameters, n.weight);
    PyObject* const bias_item = item(parameters, n.bias);
    if (!weight_item || !bias_item || !is_plain(weight_item) ||
        !(bias_item == Py_None || is_plain(bias_item))) {
      return Look::kNo;
    }
    weight_object = pybind11::reinterpret_borrow<Object>(weight_item);
    if (weight().layout() != at::kStrided) {
      return Look::kNo;
    }
    if (bias_item != Py_None) {
      bias = THPVariable_Unpack(bias_item);
    }
    input = &THPVariable_Unpack(value_item);
    frozen = may_pack;
    return Look::kYes;
  }

  // Folded in evaluation, of features, by statistics that it keeps, where nothing needs a gradient.
  Look take_norm(PyObject* module, NormKind& kind) {
    const Names& n = names();
    const Object own = instance_dict(module);
    if (!frozen || has_links || epilogue || !own || !is_as_born(Py_TYPE(module), kind.born) ||
        !is_undisturbed(own.ptr()) || !kind.called.is_untouched() ||
        item(own.ptr(), n.training) != Py_False || value().dim() != 2 || needs_grad() ||
        at::autocast::is_autocast_enabled(at::kCPU) || weight().dim() != 2 ||
        !(weight().scalar_type() == at::kFloat || weight().scalar_type() == at::kDouble)) {
      return Look::kNo;
    }
    for (PyObject* tensor : norm_tensors(own.ptr())) {
      if (!tensor || (tensor != Py_None && !is_plain(tensor))) {
        return Look::kNo;
      }
      if (tensor != Py_None) {
        const Tensor& t = THPVariable_Unpack(tensor);
        if (t.dim() != 1 || t.sym_size(0) != weight().sym_size(0) ||
            t.scalar_type() != weight().scalar_type() ||
            (c10::GradMode::is_enabled() && t.requires_grad())) {
          return Look::kNo;
        }
      }
    }
    const auto tensors = norm_tensors(own.ptr());
    if (tensors[0] == Py_None || tensors[1] == Py_None) {
      return Look::kNo;
    }
    norm = pybind11::reinterpret_borrow<Object>(module);
    has_links = true;
    return Look::kYes;
  }

  // Its statistics, weight and bias; null where there is no such entry.
  static std::array<PyObject*, 4> norm_tensors(PyObject* own) {
    const Names& n = names();
    PyObject* const buffers = item(own, n.buffers);
    PyObject* const parameters = item(own, n.parameters);
    const auto find = [](PyObject* dict, const Object& name) {
      return dict && PyDict_Check(dict) ? item(dict, name) : nullptr;
    };
    return {find(buffers, n.running_mean), find(buffers, n.running_var), find(parameters, n.weight),
            find(parameters, n.bias)};
  }

  Look take_residual(PyObject* other, bool first) {
    if (residual || epilogue || !is_plain(other)) {
      return Look::kNo;
    }
    const Tensor& tensor = THPVariable_Unpack(other);
    const Tensor &value = *input, &weight = this->weight();
    if (tensor.layout() != at::kStrided || tensor.is_nested() || value.is_nested() ||
        tensor.scalar_type() != value.scalar_type() ||
        tensor.scalar_type() != weight.scalar_type() || value.dim() == 0 || weight.dim() == 0 ||
        tensor.dim() != value.dim() || at::autocast::is_autocast_enabled(at::kCPU) ||
        tensor.sym_sizes().slice(0, value.dim() - 1) !=
            value.sym_sizes().slice(0, value.dim() - 1) ||
        tensor.sym_size(-1) != weight.sym_size(0)) {
      return Look::kNo;
    }
    // The first operand decides the strides of a sum.
    if (first && !tensor.is_contiguous()) {
      return Look::kNo;
    }
    residual = tensor;
    has_links = true;
    return Look::kYes;
  }

  Look take(Found&& found) {
    if (found.get().idle) {
      has_links = true;
      return Look::kYes;
    }
    if (epilogue) {
      return Look::kNo;
    }
    if (!found.row) {
      made = std::move(found.read);
    }
    const Epilogue& one = found.row ? *found.row : made;
    epilogue = &one;
    if (one.in_place && tables().keeps_result.count(one.name) == 0 && needs_grad()) {
      epilogue = nullptr;
      return Look::kNo;
    }
    return Look::kYes;
  }

  Tensor run(bool saves_output) const;
};

Look read_activation(PyObject* module, ActivationKind& kind, Epilogue& epilogue) {
  const Object own = instance_dict(module);
  if (!own || !is_as_born(Py_TYPE(module), kind.born) || !is_undisturbed(own.ptr()) ||
      !kind.called.is_untouched()) {
    return Look::kNo;
  }
  epilogue.name = kind.name;
  if (kind.variant) {
    PyObject* const value = item(own.ptr(), kind.variant);
    const auto same = [&](const auto& one) {
      return value && PyUnicode_CheckExact(value) && PyUnicode_Compare(value, one.first.ptr()) == 0;
    };
    const auto found = std::find_if(kind.variants.begin(), kind.variants.end(), same);
    if (found == kind.variants.end()) {
      return Look::kNo;
    }
    epilogue.name = found->second;
  }
  for (const Object& attribute : kind.attributes) {
    PyObject* const value = item(own.ptr(), attribute);
    Argument<double> number;
    if (!value || (kind.takes_dim && !PyLong_CheckExact(value)) || !number.read(value)) {
      return Look::kNo;
    }
    epilogue.parameters.push_back(number.get());
  }
  epilogue.parameters.append(kind.constants.begin(), kind.constants.end());
  if (kind.has_slope) {
    PyObject* const parameters = item(own.ptr(), names().parameters);
    PyObject* const slope = parameters ? item(parameters, names().weight) : nullptr;
    if (!slope || !is_plain(slope)) {
      return Look::kNo;
    }
    epilogue.slope = THPVariable_Unpack(slope);
  }
  epilogue.in_place = item(own.ptr(), names().in_place) == Py_True;
  return Look::kYes;
}

Look read_idle(PyObject* module, IdleKind& kind) {
  const Object own = instance_dict(module);
  if (!own || !is_as_born(Py_TYPE(module), kind.born) || !is_undisturbed(own.ptr())) {
    return Look::kNo;
  }
  if (kind.is_dropout) {
    PyObject* const p = item(own.ptr(), names().p);
    Argument<double> number;
    if (item(own.ptr(), names().training) != Py_False || !p || !number.read(p) ||
        !(number.get() >= 0 && number.get() <= 1) || !kind.called.is_untouched()) {
      return Look::kNo;
    }
  }
  return Look::kYes;
}

// Whether only Python knows what modules of a class are (norms, other libraries' classes). Asked
// once for each version of a class.
bool asks_python(PyTypeObject* type) {
  static auto* const known = new std::unordered_map<unsigned int, bool>;
  const unsigned int version = version_of(type);
  const auto found = version == 0 ? known->end() : known->find(version);
  if (found != known->end()) {
    return found->second;
  }
  const bool asks =
      tables().asks_python(pybind11::handle(reinterpret_cast<PyObject*>(type))).cast<bool>();
  if (const unsigned int now = version_of(type); now != 0 && known->size() < 4096) {
    known->emplace(now, asks);
  }
  return asks;
}

// A module that follows a layer.
Look read_module(PyObject* module, Epilogue& epilogue) {
  Tables& t = tables();
  const auto activation = t.activations.find(Py_TYPE(module));
  if (activation != t.activations.end()) {
    return read_activation(module, activation->second, epilogue);
  }
  const auto idle = t.idle.find(Py_TYPE(module));
  if (idle != t.idle.end()) {
    epilogue.idle = true;
    return read_idle(module, idle->second);
  }
  return asks_python(Py_TYPE(module)) ? Look::kPython : Look::kNo;
}

// ---- packed weights ----------------------------------------------------------------------------

// What fastact/conversion/packing.py keeps of a weight, by the address of its Python object;
// dropped with that. It keeps the weight's memory, so that no other tensor gets the address.
struct Packed {
  uint32_t version;
  const void* data;
  std::vector<int64_t> sizes, strides;
  Tensor packed;
};

std::unordered_map<PyObject*, Packed>& packed_weights() {
  static auto* const made = new std::unordered_map<PyObject*, Packed>;
  return *made;
}

Tensor packed_of(PyObject* object, const Tensor& weight) {
  auto& kept = packed_weights();
  const auto found = kept.find(object);
  const uint32_t version = weight._version();
  if (found != kept.end()) {
    const Packed& one = found->second;
    if (one.version == version && one.data == weight.const_data_ptr() &&
        weight.sizes() == one.sizes && weight.strides() == one.strides) {
      return one.packed;
    }
  }
  const Object made = tables().pack(pybind11::handle(object));
  const Tensor packed = THPVariable_Unpack(made.ptr());
  kept[object] = {version, weight.const_data_ptr(), weight.sizes().vec(), weight.strides().vec(),
                  packed};
  return packed;
}

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
  PyObject* norm;
  double eps;
  std::array<Fact, 6> facts;  // weight, bias, and the norm's tensors
  std::vector<int64_t> sizes, strides;
  Tensor weight, bias, packed;
};

std::unordered_map<PyObject*, Folded>& folded_weights() {
  static auto* const made = new std::unordered_map<PyObject*, Folded>;
  return *made;
}

// Null where a tensor has no version.
const Folded* folded_of(PyObject* weight_object, const OptionalTensor& bias, PyObject* norm) {
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
  const auto tensors = Fusion::norm_tensors(own.ptr());
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
      found->second.facts == facts && weight.sizes() == found->second.sizes &&
      weight.strides() == found->second.strides) {
    return &found->second;
  }
  const Object bias_object =
      bias ? pybind11::reinterpret_steal<Object>(THPVariable_Wrap(*bias)) : pybind11::none();
  const auto made = tables()
                        .fold(pybind11::handle(weight_object), bias_object, pybind11::handle(norm))
                        .cast<pybind11::tuple>();
  const auto tensor = [&](int i) { return THPVariable_Unpack(made[i].ptr()); };
  Folded& entry = kept[weight_object];
  entry = {norm,      eps,       facts,    weight.sizes().vec(), weight.strides().vec(),
           tensor(0), tensor(1), tensor(2)};
  return &entry;
}

PyObject* forget_packed(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count == 1) {
    PyObject* const object = static_cast<PyObject*>(PyLong_AsVoidPtr(args[0]));
    packed_weights().erase(object);
    folded_weights().erase(object);
  }
  Py_RETURN_NONE;
}

// ---- running -----------------------------------------------------------------------------------

// From here on a call is long enough for other Python threads to profit.
constexpr std::size_t kReleaseGilBytes = 64 * 1024;

// Thrown where Python has to decide after all.
struct AskPython {};

Tensor Fusion::run(bool saves_output) const {
  static const auto* const none = new Epilogue;
  const Epilogue& after = epilogue ? *epilogue : *none;
  const Tensor &value = *input, &weight = this->weight();
  ActivationName activation;
  if (epilogue) {
    activation = c10::string_view(after.name);
  }
  const bool grad = needs_grad();
  const auto call = [&](const auto& f) {
    if (!weight.is_nested() && weight.nbytes() >= kReleaseGilBytes) {
      pybind11::gil_scoped_release release;
      return f();
    }
    return f();
  };
  const bool transformed =
      c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
  if (norm) {
    const Folded* const kept = grad || transformed || !weight.is_cpu()
                                   ? nullptr
                                   : folded_of(weight_object.ptr(), bias, norm.ptr());
    if (!kept) {
      throw AskPython();
    }
    // Copied, as other threads may drop them while this one runs.
    const Tensor with_norm = kept->weight, packed = kept->packed;
    const OptionalTensor bias_with_norm = kept->bias;
    return call([&] {
      return linear_packed_op.call(value, packed, with_norm, bias_with_norm, activation,
                                   after.parameters, after.slope, residual);
    });
  }
  if (frozen && !grad && !transformed && weight.is_cpu() && !weight.is_inference()) {
    const Tensor packed = packed_of(weight_object.ptr(), weight);
    return call([&] {
      return linear_packed_op.call(value, packed, weight, bias, activation, after.parameters,
                                   after.slope, residual);
    });
  }
  if (frozen && (weight.is_inference() || transformed)) {
    throw AskPython();
  }
  const bool keeps = saves_output || !epilogue || tables().keeps_result.count(after.name);
  return call([&] {
    return linear_op.call(value, weight, bias, activation, after.parameters, after.slope, residual,
                          keeps);
  });
}

// The fused call. Where the operator refuses the operands, nothing: the calls as written raise that
// error too, in eager's words. Not where a hook on saved tensors may have raised it: that has run.
std::optional<Tensor> try_run(const Fusion& fusion, bool saves_output) {
  try {
    return fusion.run(saves_output);
  } catch (const c10::Error&) {
    if (at::SavedTensorDefaultHooks::is_enabled() &&
        at::SavedTensorDefaultHooks::get_hooks(true).has_value()) {
      throw;
    }
    return std::nullopt;
  }
}

// ---- a site ------------------------------------------------------------------------------------

struct Attribute {
  Object name;
  // Of the class that was last found to have no say in it: modules of it have it in their dicts.
  unsigned int version = 0;
};

struct Operand {
  Py_ssize_t slot = -1;
  Object name;  // of a global
  std::vector<Attribute> path;
  Object constant;
};

enum class Kind { kCall, kMethod, kSum };

struct Link {
  Kind kind;
  bool has_callee = false;
  Operand callee;
  Object method;
  std::vector<Operand> args;
  std::vector<std::pair<Object, Operand>> kwargs;
  Object keyword_names;  // a tuple, or null
  bool first = false;
  Py_ssize_t statement = 0;
  // What a function was found to be with these very arguments, which are numbers and the like.
  Object known_function;
  std::vector<Object> known_arguments;
  Epilogue known;
};

struct SiteObject {
  PyObject_HEAD vectorcallfunc vectorcall;
  PyObject* decide;             // Python's Site, of the same plan
  PyObject* scope;              // the function's globals
  std::vector<Operand>* order;  // what the chain evaluates, in what the site is handed
  std::vector<Link>* links;
  Py_ssize_t layer;
  Py_ssize_t input;
  Py_ssize_t own;  // links of the first statement
  Py_ssize_t statements;
  bool frozen;
};

Object global(PyObject* scope, const Object& name) {
  PyObject* found = item(scope, name);
  if (!found) {
    PyObject* builtins = PyDict_GetItemString(scope, "__builtins__");
    if (builtins && PyModule_Check(builtins)) {
      builtins = PyModule_GetDict(builtins);
    }
    found = builtins && PyDict_Check(builtins) ? item(builtins, name) : nullptr;
  }
  return pybind11::reinterpret_borrow<Object>(found);
}

// An attribute that a module has registered, or has in its dict; else null.
Object from_dicts(PyObject* module, const Object& name) {
  const Object own = instance_dict(module);
  if (!own) {
    return Object();
  }
  PyObject* found = item(own.ptr(), name);
  for (const Object* registered : {&names().parameters, &names().buffers, &names().modules}) {
    if (found) {
      break;
    }
    PyObject* const dict = item(own.ptr(), *registered);
    found = dict && PyDict_Check(dict) ? item(dict, name) : nullptr;
  }
  return pybind11::reinterpret_borrow<Object>(found);
}

// An attribute, where reading it runs nobody's code; else null.
Object peek(PyObject* owner, Attribute& attribute) {
  const Object& name = attribute.name;
  const auto borrowed = [](PyObject* object) {
    return pybind11::reinterpret_borrow<Object>(object);
  };
  PyTypeObject* const type = Py_TYPE(owner);
  if (PyModule_CheckExact(owner)) {
    return borrowed(item(PyModule_GetDict(owner), name));
  }
  const Tables& t = tables();
  const Names& n = names();
  const unsigned int version = version_of(type);
  if (version != 0 && version == attribute.version) {
    return from_dicts(owner, name);
  }
  if (!PyType_IsSubtype(type, t.module_type) ||
      _PyType_Lookup(type, n.getattribute.ptr()) != t.object_getattribute.ptr()) {
    return Object();
  }
  PyObject* const inherited = _PyType_Lookup(type, name.ptr());
  if (inherited && Py_TYPE(inherited)->tp_descr_set) {
    return Object();
  }
  const Object own = instance_dict(owner);
  if (!own) {
    return Object();
  }
  if (PyObject* const found = item(own.ptr(), name)) {
    return borrowed(found);
  }
  if (inherited) {
    return Py_TYPE(inherited)->tp_descr_get ? Object() : borrowed(inherited);
  }
  if (_PyType_Lookup(type, n.getattr.ptr()) != t.module_getattr.ptr()) {
    return Object();
  }
  attribute.version = version_of(type);
  return from_dicts(owner, name);
}

Object root(const SiteObject& site, const Operand& operand, PyObject* const* values) {
  if (operand.slot >= 0) {
    return pybind11::reinterpret_borrow<Object>(values[operand.slot]);
  }
  return operand.name ? global(site.scope, operand.name) : operand.constant;
}

// The operand, where reading it runs nobody's code; else null.
Object peek(const SiteObject& site, Operand& operand, PyObject* const* values) {
  Object value = root(site, operand, values);
  for (Attribute& attribute : operand.path) {
    if (!value) {
      break;
    }
    value = peek(value.ptr(), attribute);
  }
  return value;
}

// The operand as Python reads it. Throws what that raises.
Object now(const SiteObject& site, const Operand& operand, PyObject* const* values) {
  Object value = root(site, operand, values);
  if (!value) {
    throw AskPython();  // a NameError, which Python words
  }
  for (const Attribute& attribute : operand.path) {
    value =
        pybind11::reinterpret_steal<Object>(PyObject_GetAttr(value.ptr(), attribute.name.ptr()));
    if (!value) {
      throw python_error();
    }
  }
  return value;
}

bool is_immutable(PyObject* object) {
  return object == Py_None || PyBool_Check(object) || PyFloat_CheckExact(object) ||
         PyLong_CheckExact(object) || PyUnicode_CheckExact(object);
}

// A function or a method with arguments.
Look classify(Link& link, PyObject* target, const std::vector<Object>& arguments,
              Epilogue& epilogue) {
  if (link.known_function.ptr() == target && link.known_arguments.size() == arguments.size() &&
      std::equal(arguments.begin(), arguments.end(), link.known_arguments.begin(),
                 [](const Object& a, const Object& b) { return a.ptr() == b.ptr(); })) {
    epilogue = link.known;
    return Look::kYes;
  }
  for (const Object& argument : arguments) {
    if (!is_immutable(argument.ptr())) {
      return Look::kPython;
    }
  }
  pybind11::tuple args(link.args.size());
  pybind11::dict kwargs;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (i < link.args.size()) {
      args[i] = arguments[i];
    } else {
      kwargs[link.kwargs[i - link.args.size()].first] = arguments[i];
    }
  }
  const Object found = tables().classify(pybind11::handle(target), args, kwargs);
  if (found.is_none()) {
    return Look::kNo;
  }
  const auto row =
      found.cast<pybind11::tuple>();  // links.Epilogue: name, parameters, slope, inplace
  Epilogue made;
  made.name = row[0].cast<std::string>();
  made.idle = made.name.empty();
  for (const auto number : row[1].cast<pybind11::tuple>()) {
    made.parameters.push_back(number.cast<double>());
  }
  made.in_place = row[3].cast<bool>();
  link.known_function = pybind11::reinterpret_borrow<Object>(target);
  link.known_arguments = arguments;
  link.known = made;
  epilogue = made;
  return Look::kYes;
}

Look take(const SiteObject& site, Link& link, PyObject* const* values, Fusion& fusion) {
  const Tables& t = tables();
  Object callee;
  if (link.has_callee) {
    callee = peek(site, link.callee, values);
    if (!callee) {
      return Look::kNo;
    }
  }
  std::vector<Object> arguments;
  for (Operand& operand : link.args) {
    arguments.push_back(peek(site, operand, values));
  }
  for (auto& keyword : link.kwargs) {
    arguments.push_back(peek(site, keyword.second, values));
  }
  for (const Object& argument : arguments) {
    if (!argument) {
      return Look::kNo;
    }
  }
  if (link.kind == Kind::kSum) {
    if (callee && t.sums.count(callee.ptr()) == 0) {
      return Look::kNo;
    }
    return fusion.take_residual(arguments[0].ptr(), link.first);
  }
  Found found;
  Look look;
  if (link.kind == Kind::kMethod) {
    const auto type = reinterpret_cast<PyTypeObject*>(THPVariableClass);
    const auto method = t.methods.find(link.method.cast<std::string>());
    if (method == t.methods.end() ||
        _PyType_Lookup(type, link.method.ptr()) != method->second.ptr()) {
      return Look::kNo;
    }
    if (PyUnicode_Compare(link.method.ptr(), names().add.ptr()) == 0) {
      return link.args.size() == 1 && link.kwargs.empty()
                 ? fusion.take_residual(arguments[0].ptr(), false)
                 : Look::kNo;
    }
    look = classify(link, link.method.ptr(), arguments, found.read);
  } else if (const auto norm = tables().norms.find(Py_TYPE(callee.ptr()));
             norm != tables().norms.end()) {
    return arguments.empty() ? fusion.take_norm(callee.ptr(), norm->second) : Look::kNo;
  } else if (PyType_IsSubtype(Py_TYPE(callee.ptr()), t.module_type)) {
    look = arguments.empty() ? read_module(callee.ptr(), found.read) : Look::kNo;
  } else {
    const auto bare = t.functions.find(callee.ptr());
    if (arguments.empty() && bare != t.functions.end()) {
      found.row = &bare->second;
      look = Look::kYes;
    } else if (PyCFunction_Check(callee.ptr()) || PyFunction_Check(callee.ptr())) {
      look = classify(link, callee.ptr(), arguments, found.read);
    } else {
      look = Look::kNo;
    }
  }
  return look == Look::kYes ? fusion.take(std::move(found)) : look;
}

// A link of the first statement, as Python runs it.
Object as_written(const SiteObject& site, const Link& link, Object value, PyObject* const* values) {
  const auto result = [](PyObject* object) {
    if (!object) {
      throw python_error();
    }
    return pybind11::reinterpret_steal<Object>(object);
  };
  Object function;
  if (link.has_callee) {
    function = now(site, link.callee, values);
  }
  // A method of Tensor is called by its name, as Python calls it; any other is looked up first.
  const bool by_name = link.kind == Kind::kMethod && is_plain(value.ptr());
  if (link.kind == Kind::kMethod && !by_name) {
    function = result(PyObject_GetAttr(value.ptr(), link.method.ptr()));
  }
  std::vector<Object> arguments;
  for (const Operand& operand : link.args) {
    arguments.push_back(now(site, operand, values));
  }
  if (link.kind == Kind::kSum) {
    PyObject* const both[] = {link.first ? arguments[0].ptr() : value.ptr(),
                              link.first ? value.ptr() : arguments[0].ptr()};
    return result(function ? PyObject_Vectorcall(function.ptr(), both, 2, nullptr)
                           : PyNumber_Add(both[0], both[1]));
  }
  for (const auto& keyword : link.kwargs) {
    arguments.push_back(now(site, keyword.second, values));
  }
  std::vector<PyObject*> call;
  if (link.kind == Kind::kCall || by_name) {
    call.push_back(value.ptr());
  }
  for (const Object& argument : arguments) {
    call.push_back(argument.ptr());
  }
  const std::size_t positional = call.size() - link.kwargs.size();
  if (by_name) {
    return result(PyObject_VectorcallMethod(link.method.ptr(), call.data(), positional,
                                            link.keyword_names.ptr()));
  }
  return result(
      PyObject_Vectorcall(function.ptr(), call.data(), positional, link.keyword_names.ptr()));
}

PyObject* call_site(PyObject* self, PyObject* const* handed, std::size_t flags,
                    PyObject* keywords) {
  HANDLE_TH_ERRORS
  const auto& site = *reinterpret_cast<SiteObject*>(self);
  const auto python = [&] { return PyObject_Vectorcall(site.decide, handed, flags, keywords); };
  std::vector<Link>& links = *site.links;
  const auto count = static_cast<Py_ssize_t>(links.size());
  Py_ssize_t taken = 0;
  std::optional<Tensor> fused;
  Look look = surroundings();
  // Owned: other threads run while the operator does, and whatever is called as written may drop
  // what it was read from.
  c10::SmallVector<Object, 8> owned;
  c10::SmallVector<PyObject*, 8> borrowed;
  for (Operand& operand : *site.order) {
    owned.push_back(peek(site, operand, handed));
    borrowed.push_back(owned.back().ptr());
    if (!owned.back() && look == Look::kYes) {
      look = Look::kNo;
    }
  }
  PyObject* const* const values = borrowed.data();
  if (look == Look::kYes) {
    Fusion fusion;
    look = fusion.take_layer(values[site.layer], values[site.input], site.frozen);
    if (look == Look::kYes) {
      for (; taken < count; ++taken) {
        look = take(site, links[taken], values, fusion);
        if (look != Look::kYes) {
          break;
        }
      }
      // Of a later statement all or nothing.
      Py_ssize_t whole = taken;
      while (site.own < whole && whole < count &&
             links[whole].statement == links[whole - 1].statement) {
        --whole;
      }
      if (look == Look::kPython) {
        return python();
      }
      try {
        if (taken == whole) {
          fused = try_run(fusion, false);
        } else {
          Fusion shorter;
          shorter.take_layer(values[site.layer], values[site.input], site.frozen);
          for (taken = 0; taken < whole; ++taken) {
            take(site, links[taken], values, shorter);
          }
          fused = try_run(shorter, false);
        }
      } catch (const AskPython&) {
        return python();
      }
    }
  }
  if (look == Look::kPython) {
    return python();
  }
  Object value;
  if (fused) {
    value = pybind11::reinterpret_steal<Object>(THPVariable_Wrap(std::move(*fused)));
  } else {
    taken = 0;
    // As Python reads it, before anything is called.
    for (std::size_t i = 0; i < site.order->size(); ++i) {
      if (!(*site.order)[i].path.empty()) {
        owned[i] = now(site, (*site.order)[i], handed);
        borrowed[i] = owned[i].ptr();
      }
    }
    value = pybind11::reinterpret_steal<Object>(
        PyObject_CallOneArg(values[site.layer], values[site.input]));
  }
  if (!value) {
    return nullptr;
  }
  for (Py_ssize_t i = taken; i < site.own; ++i) {
    value = as_written(site, links[i], value, values);
  }
  if (site.statements == 1) {
    return value.release().ptr();
  }
  const Py_ssize_t done = taken == 0 ? 1 : links[taken - 1].statement + 1;
  return Py_BuildValue("(Nn)", value.release().ptr(), done);
  END_HANDLE_TH_ERRORS
}

// ---- the type ----------------------------------------------------------------------------------

Operand operand_from(pybind11::handle operand) {
  Operand made;
  if (operand.is_none()) {
    return made;
  }
  made.slot = operand.attr("slot").cast<Py_ssize_t>();
  const auto name = operand.attr("name").cast<std::string>();
  if (!name.empty()) {
    made.name = operand.attr("name");
  }
  for (const auto one : operand.attr("path").cast<pybind11::tuple>()) {
    made.path.push_back({pybind11::reinterpret_borrow<Object>(one)});
  }
  made.constant = operand.attr("constant");
  return made;
}

// Site(decide), of Python's Site.
PyObject* new_site(PyTypeObject* type, PyObject* args, PyObject*) {
  HANDLE_TH_ERRORS
  PyObject* decide = nullptr;
  if (!PyArg_ParseTuple(args, "O", &decide)) {
    return nullptr;
  }
  const pybind11::handle python(decide);
  const Object plan = python.attr("plan");
  auto links = std::make_unique<std::vector<Link>>();
  for (const auto one : plan.attr("links").cast<pybind11::tuple>()) {
    Link link;
    const auto kind = one.attr("kind").cast<std::string>();
    link.kind = kind == "call" ? Kind::kCall : kind == "method" ? Kind::kMethod : Kind::kSum;
    link.has_callee = !one.attr("callee").is_none();
    link.callee = operand_from(one.attr("callee"));
    link.method = one.attr("name");
    for (const auto operand : one.attr("args").cast<pybind11::tuple>()) {
      link.args.push_back(operand_from(operand));
    }
    const auto kwargs = one.attr("kwargs").cast<pybind11::tuple>();
    pybind11::tuple keyword_names(kwargs.size());
    for (std::size_t i = 0; i < kwargs.size(); ++i) {
      const auto pair = kwargs[i].cast<pybind11::tuple>();
      keyword_names[i] = pair[0];
      link.kwargs.emplace_back(pair[0], operand_from(pair[1]));
    }
    if (kwargs.size() > 0) {
      link.keyword_names = keyword_names;
    }
    link.first = one.attr("first").cast<bool>();
    link.statement = one.attr("statement").cast<Py_ssize_t>();
    links->push_back(std::move(link));
  }
  auto order = std::make_unique<std::vector<Operand>>();
  for (const auto operand : plan.attr("order").cast<pybind11::tuple>()) {
    order->push_back(operand_from(operand));
  }
  auto* site = reinterpret_cast<SiteObject*>(type->tp_alloc(type, 0));
  if (!site) {
    return nullptr;
  }
  site->vectorcall = &call_site;
  site->decide = Py_NewRef(decide);
  site->scope = Object(python.attr("scope")).release().ptr();
  site->order = order.release();
  site->links = links.release();
  site->layer = plan.attr("layer").cast<Py_ssize_t>();
  site->input = plan.attr("input").cast<Py_ssize_t>();
  site->own = python.attr("own").cast<Py_ssize_t>();
  site->statements = plan.attr("statements").cast<Py_ssize_t>();
  site->frozen = plan.attr("frozen").cast<bool>();
  return reinterpret_cast<PyObject*>(site);
  END_HANDLE_TH_ERRORS
}

int traverse_site(PyObject* self, visitproc visit, void* arg) {
  auto* site = reinterpret_cast<SiteObject*>(self);
  Py_VISIT(site->decide);
  Py_VISIT(site->scope);
  return 0;
}

int clear_site(PyObject* self) {
  auto* site = reinterpret_cast<SiteObject*>(self);
  Py_CLEAR(site->decide);
  Py_CLEAR(site->scope);
  return 0;
}

void delete_site(PyObject* self) {
  PyObject_GC_UnTrack(self);
  clear_site(self);
  delete reinterpret_cast<SiteObject*>(self)->order;
  delete reinterpret_cast<SiteObject*>(self)->links;
  Py_TYPE(self)->tp_free(self);
}

PyTypeObject site_type = [] {
  PyTypeObject type = {PyVarObject_HEAD_INIT(nullptr, 0)};
  type.tp_name = "fastact._C.Site";
  type.tp_basicsize = sizeof(SiteObject);
  type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL;
  type.tp_doc = "A site of a converted model, to be called. Site(decide): of Python's Site.";
  type.tp_new = &new_site;
  type.tp_dealloc = &delete_site;
  type.tp_traverse = &traverse_site;
  type.tp_clear = &clear_site;
  type.tp_call = &PyVectorcall_Call;
  type.tp_vectorcall_offset = offsetof(SiteObject, vectorcall);
  return type;
}();

// ---- torch.nn.Sequential -----------------------------------------------------------------------

// run_sequence(sequential, input, frozen): its modules one after the other, each layer with those
// after it that it can be fused with.
PyObject* run_sequence(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 3) {
    PyErr_SetString(PyExc_TypeError, "fastact.run_sequence(): expected 3 arguments");
    return nullptr;
  }
  const Tables& t = tables();
  PyObject* const sequential = args[0];
  const bool frozen = args[2] == Py_True;
  Object modules;
  if (_PyType_Lookup(Py_TYPE(sequential), names().iter.ptr()) == t.sequential_iter.ptr()) {
    const Object own = instance_dict(sequential);
    PyObject* const children = own ? item(own.ptr(), names().modules) : nullptr;
    if (children && PyDict_Check(children)) {
      const auto view = pybind11::reinterpret_steal<Object>(
          PyObject_CallMethodNoArgs(children, names().values.ptr()));
      modules = pybind11::reinterpret_steal<Object>(view ? PyObject_GetIter(view.ptr()) : nullptr);
    }
  }
  if (!modules) {
    PyErr_Clear();
    modules = pybind11::reinterpret_steal<Object>(PyObject_GetIter(sequential));
  }
  if (!modules) {
    return nullptr;
  }
  const auto next = [&] {
    auto found = pybind11::reinterpret_steal<Object>(PyIter_Next(modules.ptr()));
    if (!found && PyErr_Occurred()) {
      throw python_error();
    }
    return found;
  };
  auto value = pybind11::reinterpret_borrow<Object>(args[1]);
  // The rest, from these modules on, by Python.
  const auto python = [&](const std::vector<Object>& fetched) {
    pybind11::list first;
    for (const Object& module : fetched) {
      first.append(module);
    }
    return t.run_sequence(first, modules, value, frozen).release().ptr();
  };
  const auto call = [&](const Object& module) {
    auto result =
        pybind11::reinterpret_steal<Object>(PyObject_CallOneArg(module.ptr(), value.ptr()));
    if (!result) {
      throw python_error();
    }
    value = std::move(result);
  };
  Object following = next();
  while (following) {
    const Object layer = std::move(following);
    following = Object();
    Look look = t.layers.count(Py_TYPE(layer.ptr())) ? surroundings() : Look::kNo;
    Fusion fusion;
    if (look == Look::kYes) {
      look = fusion.take_layer(layer.ptr(), value.ptr(), frozen);
    }
    if (look == Look::kPython) {
      return python({layer});
    }
    if (look == Look::kNo) {
      call(layer);
      following = next();
      continue;
    }
    std::vector<Object> taken;
    bool layer_follows = false;
    while ((following = next())) {
      if (t.layers.count(Py_TYPE(following.ptr()))) {
        // Its operator does not write to its input.
        Fusion unused;
        layer_follows =
            unused.take_layer(following.ptr(), args[1], false) == Look::kYes && is_plain(args[1]);
        break;
      }
      const auto norm = tables().norms.find(Py_TYPE(following.ptr()));
      if (norm != tables().norms.end()) {
        look = fusion.take_norm(following.ptr(), norm->second);
      } else {
        Found found;
        look = read_module(following.ptr(), found.read);
        if (look == Look::kYes) {
          look = fusion.take(std::move(found));
        }
      }
      if (look == Look::kPython) {
        std::vector<Object> fetched{layer};
        fetched.insert(fetched.end(), taken.begin(), taken.end());
        fetched.push_back(following);
        return python(fetched);
      }
      if (look == Look::kNo) {
        break;
      }
      taken.push_back(following);
    }
    std::optional<Tensor> fused;
    try {
      fused = try_run(fusion, layer_follows);
    } catch (const AskPython&) {
      std::vector<Object> fetched{layer};
      fetched.insert(fetched.end(), taken.begin(), taken.end());
      if (following) {
        fetched.push_back(following);
      }
      return python(fetched);
    }
    if (fused) {
      value = pybind11::reinterpret_steal<Object>(THPVariable_Wrap(std::move(*fused)));
    } else {
      call(layer);
      for (const Object& module : taken) {
        call(module);
      }
    }
  }
  return value.release().ptr();
  END_HANDLE_TH_ERRORS
}

// ---- setting up --------------------------------------------------------------------------------

Called called_from(pybind11::handle triple) {
  Called made;
  if (!triple.is_none()) {
    const auto parts = triple.cast<pybind11::tuple>();
    made = {parts[0], parts[1], parts[2]};
  }
  return made;
}

// set_up_sites(tables), of fastact/conversion/site.py.
void set_up(const pybind11::dict& given) {
  Tables& t = tables();
  t.module_type = reinterpret_cast<PyTypeObject*>(Object(given["module"]).release().ptr());
  t.module_call = given["call"];
  t.call_impl = given["call_impl"];
  t.wrapped_call_impl = given["wrapped_call_impl"];
  t.module_getattr = given["getattr"];
  t.object_getattribute = given["getattribute"];
  t.sequential_iter = given["sequential_iter"];
  for (const auto hooks : given["global_hooks"]) {
    t.global_hooks.push_back(pybind11::reinterpret_borrow<Object>(hooks));
  }
  const auto type_of = [](pybind11::handle type) {
    return reinterpret_cast<PyTypeObject*>(type.inc_ref().ptr());
  };
  for (const auto row : given["layers"]) {
    LayerKind kind;
    kind.born.forward = row.attr("__getitem__")(1);
    kind.called = called_from(row.attr("__getitem__")(2));
    kind.has_own_activation = row.attr("__getitem__")(3).cast<bool>();
    t.layers[type_of(row.attr("__getitem__")(0))] = kind;
  }
  for (const auto one : given["activations"]) {
    const auto row = one.cast<pybind11::tuple>();
    ActivationKind kind;
    kind.born.forward = row[1];
    kind.called = called_from(row[2]);
    kind.name = row[3].cast<std::string>();
    for (const auto name : row[4]) {
      kind.attributes.push_back(pybind11::reinterpret_borrow<Object>(name));
    }
    kind.constants = row[5].cast<std::vector<double>>();
    if (!row[6].is_none()) {
      const auto variant = row[6].cast<pybind11::tuple>();
      kind.variant = variant[0];
      for (const auto& [value, name] : variant[1].cast<pybind11::dict>()) {
        kind.variants.emplace_back(pybind11::reinterpret_borrow<Object>(value),
                                   name.cast<std::string>());
      }
    }
    kind.has_slope = row[7].cast<bool>();
    kind.takes_dim = row[8].cast<bool>();
    t.activations[type_of(row[0])] = kind;
  }
  for (const auto one : given["idle"]) {
    const auto row = one.cast<pybind11::tuple>();
    IdleKind kind;
    kind.born.forward = row[1];
    kind.called = called_from(row[2]);
    kind.is_dropout = row[3].cast<bool>();
    t.idle[type_of(row[0])] = kind;
  }
  for (const auto one : given["norms"]) {
    const auto row = one.cast<pybind11::tuple>();
    NormKind kind;
    kind.born.forward = row[1];
    kind.called = called_from(row[2]);
    t.norms[type_of(row[0])] = kind;
  }
  for (const auto one : given["functions"]) {
    const auto row = one.cast<pybind11::tuple>();
    Epilogue epilogue;
    epilogue.name = row[1].cast<std::string>();
    for (const auto number : row[2].cast<pybind11::tuple>()) {
      epilogue.parameters.push_back(number.cast<double>());
    }
    epilogue.in_place = row[3].cast<bool>();
    t.functions[Object(row[0]).release().ptr()] = epilogue;
  }
  for (const auto& [name, method] : given["methods"].cast<pybind11::dict>()) {
    t.methods[name.cast<std::string>()] = pybind11::reinterpret_borrow<Object>(method);
  }
  for (const auto function : given["sums"]) {
    t.sums.insert(function.inc_ref().ptr());
  }
  for (const auto name : given["keeps_result"]) {
    t.keeps_result.insert(name.cast<std::string>());
  }
  t.asks_python = given["asks_python"];
  t.classify = given["classify"];
  t.pack = given["pack"];
  t.fold = given["fold"];
  t.run_sequence = given["run_sequence"];
}

PyMethodDef functions[] = {
    {"run_sequence", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&run_sequence)),
     METH_FASTCALL, nullptr},
    {"forget_packed", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&forget_packed)),
     METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void add_site(PyObject* module) {
  if (PyType_Ready(&site_type) < 0 || PyModule_AddFunctions(module, functions) < 0 ||
      PyModule_AddObjectRef(module, "Site", reinterpret_cast<PyObject*>(&site_type)) < 0) {
    throw pybind11::error_already_set();
  }
  auto m = pybind11::reinterpret_borrow<pybind11::module_>(module);
  m.def("set_up_sites", &set_up);
  m.def("observe_sites", [](bool observed) { is_observed = observed; });
}

}  // namespace fastact
