#include "bindings/site/modules.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <algorithm>

#include "bindings/function.h"

namespace fastact::site {

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
      _PyType_Lookup(type, names().wrapped_call_impl.ptr()) == t.wrapped_call_impl.ptr() &&
      (!born.helper || _PyType_Lookup(type, born.helper_name.ptr()) == born.helper.ptr());
  // The look-ups have given the class a version.
  born.version = same ? version_of(type) : 0;
  return same;
}

namespace {

bool is_empty(PyObject* dict, const Object& name) {
  PyObject* hooks = item(dict, name);
  return hooks && PyDict_Check(hooks) && PyDict_GET_SIZE(hooks) == 0;
}

}  // namespace

bool is_undisturbed(PyObject* own) {
  const Names& n = names();
  return is_empty(own, n.forward_hooks) && is_empty(own, n.forward_pre_hooks) &&
         is_empty(own, n.backward_hooks) && is_empty(own, n.backward_pre_hooks) &&
         !has(own, n.forward) && !has(own, n.compiled) && !has(own, n.left_out);
}

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

std::array<PyObject*, 4> norm_tensors(PyObject* own) {
  const Names& n = names();
  PyObject* const buffers = item(own, n.buffers);
  PyObject* const parameters = item(own, n.parameters);
  const auto find = [](PyObject* dict, const Object& name) {
    return dict && PyDict_Check(dict) ? item(dict, name) : nullptr;
  };
  return {find(buffers, n.running_mean), find(buffers, n.running_var), find(parameters, n.weight),
          find(parameters, n.bias)};
}

namespace {

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

// A number for both dimensions, or two.
bool read_pair(PyObject* value, std::array<int64_t, 2>& pair) {
  const bool is_tuple = value && PyTuple_CheckExact(value);
  if (!value || (is_tuple && PyTuple_GET_SIZE(value) != 2)) {
    return false;
  }
  for (int i = 0; i < 2; ++i) {
    Argument<int64_t> number;
    if (!number.read(is_tuple ? PyTuple_GET_ITEM(value, i) : value)) {
      return false;
    }
    pair[i] = number.value;
  }
  return true;
}

Look read_pool(PyObject* module, PoolKind& kind, Pool& pool) {
  const Names& n = names();
  const Object own = instance_dict(module);
  if (!own || !is_as_born(Py_TYPE(module), kind.born) || !is_undisturbed(own.ptr()) ||
      !kind.called.is_untouched() || item(own.ptr(), n.return_indices) != Py_False ||
      !read_pair(item(own.ptr(), n.kernel_size), pool.kernel) ||
      !read_pair(item(own.ptr(), n.stride), pool.stride) ||
      !read_pair(item(own.ptr(), n.padding), pool.padding) ||
      !read_pair(item(own.ptr(), n.dilation), pool.dilation)) {
    return Look::kNo;
  }
  PyObject* const ceil_mode = item(own.ptr(), n.ceil_mode);
  pool.ceil_mode = ceil_mode == Py_True;
  return pool.ceil_mode || ceil_mode == Py_False ? Look::kYes : Look::kNo;
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

}  // namespace

Look read_module(PyObject* module, Found& found) {
  Tables& t = tables();
  Epilogue& epilogue = found.read;
  const auto activation = t.activations.find(Py_TYPE(module));
  if (activation != t.activations.end()) {
    return read_activation(module, activation->second, epilogue);
  }
  const auto idle = t.idle.find(Py_TYPE(module));
  if (idle != t.idle.end()) {
    epilogue.idle = true;
    return read_idle(module, idle->second);
  }
  const auto pool = t.pools.find(Py_TYPE(module));
  if (pool != t.pools.end()) {
    return read_pool(module, pool->second, found.pool.emplace());
  }
  return asks_python(Py_TYPE(module)) ? Look::kPython : Look::kNo;
}

}  // namespace fastact::site
