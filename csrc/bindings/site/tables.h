// What Python tells a site of a converted model once (fastact/conversion/site.py): which classes
// and functions there are and what they were born with.
#pragma once

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/checks.h"

namespace fastact::site {

using Object = pybind11::object;

// A class as it was when somebody last made sure that nothing of it was replaced. Every change of a
// class or of its bases gives it another version, and no two classes have the same.
struct Born {
  Object forward;
  // Another method that the forward calls, if it does: its name, and what it was.
  Object helper_name, helper;
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
  Object function;                  // the name of its row
  int64_t dims = 0;                 // of a convolution's images
  PyTypeObject* norm = nullptr;     // that is folded into it
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

// A max pool of images, by its module's class, and what it is told.
struct PoolKind {
  Born born;
  Called called;
};
struct Pool {
  std::array<int64_t, 2> kernel, stride, padding, dilation;
  bool ceil_mode = false;
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

// What a link was found to be: a row of a table, or what was read off it; or a pool.
struct Found {
  const Epilogue* row = nullptr;
  Epilogue read;
  std::optional<Pool> pool;

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
  std::unordered_map<PyTypeObject*, PoolKind> pools;
  std::unordered_map<PyObject*, Epilogue> functions;  // called with the input alone
  std::unordered_map<std::string, Object> methods;    // of Tensor, as PyTorch was born with them
  std::unordered_set<PyObject*> sums;
  std::unordered_set<std::string> keeps_result;
  std::unordered_set<std::string> along_dimension;  // activations that are not elementwise
  Object asks_python;  // of a class: whether only Python can tell what its modules are
  Object classify;     // the epilogue or pool that a function with these arguments is
  Object pack;
  Object fold;
  Object run_sequence;
};

// Leaked: Python objects must not be released when the process ends.
inline Tables& tables() {
  static auto* const made = new Tables;
  return *made;
}

// Whether somebody observes sites (explain): then Python runs them.
inline bool is_observed = false;

struct Names {
  Object forward{pybind11::str("forward")}, weight{pybind11::str("weight")},
      bias{pybind11::str("bias")}, parameters{pybind11::str("_parameters")},
      buffers{pybind11::str("_buffers")}, modules{pybind11::str("_modules")},
      forward_hooks{pybind11::str("_forward_hooks")},
      forward_pre_hooks{pybind11::str("_forward_pre_hooks")},
      backward_hooks{pybind11::str("_backward_hooks")},
      backward_pre_hooks{pybind11::str("_backward_pre_hooks")},
      compiled{pybind11::str("_compiled_call_impl")}, left_out{pybind11::str("_fastact_left_out")},
      winograd{pybind11::str("_fastact_winograd")}, call{pybind11::str("__call__")},
      call_impl{pybind11::str("_call_impl")},
      wrapped_call_impl{pybind11::str("_wrapped_call_impl")}, getattr{pybind11::str("__getattr__")},
      getattribute{pybind11::str("__getattribute__")}, in_place{pybind11::str("inplace")},
      training{pybind11::str("training")}, p{pybind11::str("p")}, fused{pybind11::str("fused")},
      name{pybind11::str("name")}, iter{pybind11::str("__iter__")}, add{pybind11::str("add")},
      values{pybind11::str("values")}, is_module{pybind11::str("is_module")},
      stride{pybind11::str("stride")}, padding{pybind11::str("padding")},
      dilation{pybind11::str("dilation")}, groups{pybind11::str("groups")},
      padding_mode{pybind11::str("padding_mode")}, eps{pybind11::str("eps")},
      kernel_size{pybind11::str("kernel_size")}, ceil_mode{pybind11::str("ceil_mode")},
      return_indices{pybind11::str("return_indices")}, running_mean{pybind11::str("running_mean")},
      running_var{pybind11::str("running_var")};

  Names() {
    for (Object* one = &forward; one <= &running_var; ++one) {
      PyObject* text = one->release().ptr();
      PyUnicode_InternInPlace(&text);
      *one = pybind11::reinterpret_steal<Object>(text);
    }
  }
};

inline const Names& names() {
  static const auto* const made = new Names;
  return *made;
}

// ---- dicts -------------------------------------------------------------------------------------

inline bool is_plain(PyObject* object) { return THPVariable_CheckExact(object); }

inline PyObject* item(PyObject* dict, const Object& name) {
  return PyDict_GetItemWithError(dict, name.ptr());
}

inline bool has(PyObject* dict, const Object& name) { return item(dict, name) != nullptr; }

inline Object instance_dict(PyObject* object) {
  PyObject* dict = PyObject_GenericGetDict(object, nullptr);
  if (!dict) {
    PyErr_Clear();
  }
  return pybind11::reinterpret_steal<Object>(dict);
}

// set_up_sites(tables), of fastact/conversion/site.py.
void set_up(const pybind11::dict& given);

}  // namespace fastact::site
