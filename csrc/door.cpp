// The Python module fastact._C: the low-overhead way to the operators. The only file that knows
// Python.
//
// Each function is METH_FASTCALL: pybind11's own argument parsing costs 0.2 to 0.6 us a call (Zen
// 5), this one 0.05. It serves plain tensors and numbers; whatever else comes (subclasses,
// __torch_function__ modes, symbolic numbers, wrong types) goes to fastact/overrides.py, which
// handles or refuses it as PyTorch does.
#include <ATen/PythonTorchFunctionTLS.h>
#include <pybind11/gil_safe_call_once.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "bindings_site.h"
#include "gated.h"
#include "linear.h"
#include "math/activations.h"
#include "operators.h"

namespace fastact {
namespace {

// From here on a call is long enough for other Python threads to profit: releasing and taking the
// GIL costs 0.1 us.
constexpr std::size_t kReleaseGilBytes = 64 * 1024;

bool is_plain(PyObject* object) { return THPVariable_CheckExact(object); }

bool no_function_mode() { return !at::impl::torch_function_mode_enabled(); }

// A Python number as a double; false for everything that is not exactly a float, or an int of 64
// bits.
bool as_double(PyObject* object, double& value) {
  if (PyFloat_CheckExact(object)) {
    value = PyFloat_AS_DOUBLE(object);
    return true;
  }
  if (PyLong_CheckExact(object)) {
    int overflow = 0;
    value = static_cast<double>(PyLong_AsLongLongAndOverflow(object, &overflow));
    return !overflow;
  }
  return false;
}

// A Python int as a dimension; false for everything else, and where 64 bits do not hold it.
bool as_dimension(PyObject* object, int64_t& value) {
  int overflow = 0;
  if (PyLong_CheckExact(object)) {
    value = PyLong_AsLongLongAndOverflow(object, &overflow);
    return !overflow;
  }
  return false;
}

// f(), without the GIL where `self` is large. An error that does not name the operator gets its
// name.
template <class F>
auto run(const char* name, const Tensor& self, const F& f) {
  try {
    if (self.layout() == at::kStrided && !self.is_nested() && self.nbytes() >= kReleaseGilBytes) {
      pybind11::gil_scoped_release release;
      return f();
    }
    return f();
  } catch (c10::Error& error) {
    if (error.msg().find(name) == std::string::npos) {
      error.add_context(c10::str("in fastact.", name, "()"));
    }
    throw;
  }
}

// fastact.overrides.call(name, *args): what is not served here.
PyObject* hand_on(const char* name, PyObject* const* args, Py_ssize_t count) {
  // A plain static would hold its guard while the import lets go of the GIL: a deadlock.
  PYBIND11_CONSTINIT static pybind11::gil_safe_call_once_and_store<pybind11::object> storage;
  const pybind11::object& call =
      storage
          .call_once_and_store_result(
              [] { return pybind11::module_::import("fastact.overrides").attr("call"); })
          .get_stored();
  const pybind11::str text(name);
  c10::SmallVector<PyObject*, 9> all{text.ptr()};
  all.append(args, args + count);
  return PyObject_Vectorcall(call.ptr(), all.data(), all.size(), nullptr);
}

template <class A, class I = std::make_index_sequence<A::num_parameters>>
struct Unary;

template <class A, std::size_t... I>
struct Unary<A, std::index_sequence<I...>> {
  static constexpr Py_ssize_t kCount = 1 + A::num_parameters;

  using Schemas = UnarySchemas<A::num_parameters>;

  static bool parse(PyObject* const* args, Py_ssize_t count, double* p) {
    return count == kCount && is_plain(args[0]) && no_function_mode() &&
           (as_double(args[1 + I], p[I]) && ...);
  }

  static PyObject* forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
    HANDLE_TH_ERRORS
    double p[A::num_parameters + 1];
    if (C10_UNLIKELY(!parse(args, count, p))) {
      return hand_on(A::name, args, count);
    }
    static const auto handle = find_operator<typename Schemas::Forward>(A::name);
    const Tensor& self = THPVariable_Unpack(args[0]);
    return THPVariable_Wrap(run(A::name, self, [&] { return handle.call(self, p[I]...); }));
    END_HANDLE_TH_ERRORS
  }

  static PyObject* inplace(PyObject*, PyObject* const* args, Py_ssize_t count) {
    HANDLE_TH_ERRORS
    double p[A::num_parameters + 1];
    if (C10_UNLIKELY(!parse(args, count, p))) {
      return hand_on((std::string(A::name) + "_").c_str(), args, count);
    }
    static const auto handle = find_operator<typename Schemas::Inplace>(std::string(A::name) + "_");
    Tensor self = THPVariable_Unpack(args[0]);
    run(A::name, self, [&] { return handle.call(self, p[I]...); });
    return Py_NewRef(args[0]);
    END_HANDLE_TH_ERRORS
  }
};

PyObject* prelu(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (C10_UNLIKELY(count != 2 || !is_plain(args[0]) || !is_plain(args[1]) || !no_function_mode())) {
    return hand_on("prelu", args, count);
  }
  static const auto handle = find_operator<Tensor(const Tensor&, const Tensor&)>("prelu");
  const Tensor& self = THPVariable_Unpack(args[0]);
  const Tensor& weight = THPVariable_Unpack(args[1]);
  return THPVariable_Wrap(run("prelu", self, [&] { return handle.call(self, weight); }));
  END_HANDLE_TH_ERRORS
}

// NAME(input, dim) of a gated unit.
template <int unit>
PyObject* gated(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  int64_t dim = 0;
  if (C10_UNLIKELY(count != 2 || !is_plain(args[0]) || !no_function_mode() ||
                   !as_dimension(args[1], dim))) {
    return hand_on(kGatedUnitNames[unit], args, count);
  }
  static const auto handle = find_operator<Tensor(const Tensor&, int64_t)>(kGatedUnitNames[unit]);
  const Tensor& self = THPVariable_Unpack(args[0]);
  return THPVariable_Wrap(run(kGatedUnitNames[unit], self, [&] { return handle.call(self, dim); }));
  END_HANDLE_TH_ERRORS
}

// softmax(input, dim, scale) and log_softmax(input, dim)
template <bool log>
PyObject* softmax(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  int64_t dim = 0;
  double scale = 1;
  if (C10_UNLIKELY(count != (log ? 2 : 3) || !is_plain(args[0]) || !no_function_mode() ||
                   !as_dimension(args[1], dim) || !(log || as_double(args[2], scale)))) {
    return hand_on(log ? "log_softmax" : "softmax", args, count);
  }
  const Tensor& self = THPVariable_Unpack(args[0]);
  return THPVariable_Wrap(run(log ? "log_softmax" : "softmax", self, [&] {
    if constexpr (log) {
      static const auto handle = find_operator<Tensor(const Tensor&, int64_t)>("log_softmax");
      return handle.call(self, dim);
    } else {
      static const auto handle = find_operator<Tensor(const Tensor&, int64_t, double)>("softmax");
      return handle.call(self, dim, scale);
    }
  }));
  END_HANDLE_TH_ERRORS
}

// masked_softmax(input, mask or None, dim, scale, is_causal)
PyObject* masked_softmax(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  int64_t dim = 0;
  double scale = 1;
  if (C10_UNLIKELY(count != 5 || !is_plain(args[0]) || !no_function_mode() ||
                   !(args[1] == Py_None || is_plain(args[1])) || !as_dimension(args[2], dim) ||
                   !as_double(args[3], scale) || !PyBool_Check(args[4]))) {
    return hand_on("masked_softmax", args, count);
  }
  using Schema = Tensor(const Tensor&, const OptionalTensor&, int64_t, double, bool);
  static const auto handle = find_operator<Schema>("masked_softmax");
  const Tensor& self = THPVariable_Unpack(args[0]);
  const OptionalTensor mask = args[1] == Py_None ? OptionalTensor() : THPVariable_Unpack(args[1]);
  const bool is_causal = args[4] == Py_True;
  return THPVariable_Wrap(
      run("masked_softmax", self, [&] { return handle.call(self, mask, dim, scale, is_causal); }));
  END_HANDLE_TH_ERRORS
}

// linear(input, weight, bias or None, activation or None, tuple of parameters, slope or None,
// residual or None[, save_output]), and linear_packed, without save_output, where `packed` comes
// after the input.
template <bool packed>
PyObject* linear(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  constexpr const char* name = packed ? "linear_packed" : "linear";
  constexpr Py_ssize_t kCount = packed ? 8 : 7;
  PyObject* const* rest = args + (packed ? 2 : 1);  // from weight on
  const auto plain_or_none = [](PyObject* object) { return object == Py_None || is_plain(object); };
  c10::SmallVector<double, 4> parameters;
  const auto parse = [&] {
    const bool has_flag = !packed && count == kCount + 1 && PyBool_Check(args[kCount]);
    if ((count != kCount && !has_flag) || !is_plain(args[0]) || (packed && !is_plain(args[1])) ||
        !is_plain(rest[0]) || !plain_or_none(rest[1]) ||
        !(rest[2] == Py_None || PyUnicode_CheckExact(rest[2])) || !PyTuple_CheckExact(rest[3]) ||
        !plain_or_none(rest[4]) || !plain_or_none(rest[5]) || !no_function_mode()) {
      return false;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(rest[3]); ++i) {
      if (!as_double(PyTuple_GET_ITEM(rest[3], i), parameters.emplace_back())) {
        return false;
      }
    }
    return true;
  };
  if (C10_UNLIKELY(!parse())) {
    return hand_on(name, args, count);
  }
  const auto optional_tensor = [](PyObject* object) {
    return object == Py_None ? OptionalTensor() : THPVariable_Unpack(object);
  };
  ActivationName activation;
  if (rest[2] != Py_None) {
    Py_ssize_t length = 0;
    const char* text = PyUnicode_AsUTF8AndSize(rest[2], &length);
    if (!text) {
      throw python_error();
    }
    activation = c10::string_view(text, static_cast<std::size_t>(length));
  }
  const Tensor& input = THPVariable_Unpack(args[0]);
  const Tensor& weight = THPVariable_Unpack(rest[0]);
  const OptionalTensor bias = optional_tensor(rest[1]);
  const OptionalTensor slope = optional_tensor(rest[4]);
  const OptionalTensor residual = optional_tensor(rest[5]);
  return THPVariable_Wrap(run(name, weight, [&] {
    if constexpr (packed) {
      static const auto handle = find_operator<LinearPackedSchema>(name);
      return handle.call(input, THPVariable_Unpack(args[1]), weight, bias, activation, parameters,
                         slope, residual);
    } else {
      static const auto handle = find_operator<LinearSchema>(name);
      const bool save_output = count == kCount || args[kCount] == Py_True;
      return handle.call(input, weight, bias, activation, parameters, slope, residual, save_output);
    }
  }));
  END_HANDLE_TH_ERRORS
}

void add(PyObject* module, const char* name, _PyCFunctionFast function) {
  // PyCFunction keeps a pointer to its definition for as long as it lives: as long as the process.
  auto* definition = new PyMethodDef{
      strdup(name), reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
      METH_FASTCALL, nullptr};
  PyObject* object = PyCFunction_NewEx(definition, nullptr, nullptr);
  if (!object || PyModule_AddObject(module, name, object) < 0) {
    throw pybind11::error_already_set();
  }
}

template <class... A>
void add_unary(PyObject* module, ActivationList<A...>) {
  (add(module, A::name, &Unary<A>::forward), ...);
  (add(module, (std::string(A::name) + "_").c_str(), &Unary<A>::inplace), ...);
}

template <std::size_t... I>
void add_gated(PyObject* module, std::index_sequence<I...>) {
  (add(module, kGatedUnitNames[I], &gated<I>), ...);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  add_unary(m.ptr(), Activations{});
  add(m.ptr(), "prelu", &prelu);
  add_gated(m.ptr(), std::make_index_sequence<std::size(kGatedUnitNames)>{});
  add(m.ptr(), "softmax", &softmax<false>);
  add(m.ptr(), "log_softmax", &softmax<true>);
  add(m.ptr(), "masked_softmax", &masked_softmax);
  add(m.ptr(), "linear", &linear<false>);
  add(m.ptr(), "linear_packed", &linear<true>);
  add_site(m.ptr());
}

}  // namespace fastact
