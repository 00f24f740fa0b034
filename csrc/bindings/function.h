// A Python function for an operator: made from the operator's C++ signature, an argument at a time.
//
// Each function is METH_FASTCALL: pybind11's own argument parsing costs 0.2 to 0.6 us a call (Zen
// 5), this one 0.05. It serves plain tensors and numbers; whatever else comes (subclasses,
// __torch_function__ modes, symbolic numbers, wrong types) goes to fastact/overrides.py, which
// handles or refuses it as PyTorch does.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <pybind11/gil_safe_call_once.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "core/checks.h"
#include "core/operator.h"

namespace fastact {

// From here on a call is long enough for other Python threads to profit: releasing and taking the
// GIL costs 0.1 us.
constexpr std::size_t kReleaseGilBytes = 64 * 1024;

// ---- one argument
// --------------------------------------------------------------------------------

// Of a C++ type: read() is false for a Python object that is not plainly of it; get() is what the
// operator is called with; is_large() says whether its tensor makes a call worth the GIL.
template <class T>
struct Argument;

template <>
struct Argument<const Tensor&> {
  const Tensor* tensor = nullptr;
  bool read(PyObject* object) {
    if (!THPVariable_CheckExact(object)) {
      return false;
    }
    tensor = &THPVariable_Unpack(object);
    return true;
  }
  const Tensor& get() const { return *tensor; }
  bool is_large() const { return has_sizes(*tensor) && tensor->nbytes() >= kReleaseGilBytes; }
};

template <>
struct Argument<Tensor&> : Argument<const Tensor&> {
  Tensor& get() const { return const_cast<Tensor&>(*tensor); }
};

template <>
struct Argument<const OptionalTensor&> {
  OptionalTensor tensor;
  bool read(PyObject* object) {
    if (object == Py_None) {
      return true;
    }
    if (!THPVariable_CheckExact(object)) {
      return false;
    }
    tensor = THPVariable_Unpack(object);
    return true;
  }
  const OptionalTensor& get() const { return tensor; }
  bool is_large() const { return false; }
};

struct PlainArgument {
  bool is_large() const { return false; }
};

// Exactly a float, or an int of 64 bits.
template <>
struct Argument<double> : PlainArgument {
  double value = 0;
  bool read(PyObject* object) {
    if (PyFloat_CheckExact(object)) {
      value = PyFloat_AS_DOUBLE(object);
      return true;
    }
    int overflow = 0;
    if (PyLong_CheckExact(object)) {
      value = static_cast<double>(PyLong_AsLongLongAndOverflow(object, &overflow));
      return !overflow;
    }
    return false;
  }
  double get() const { return value; }
};

template <>
struct Argument<int64_t> : PlainArgument {
  int64_t value = 0;
  bool read(PyObject* object) {
    int overflow = 0;
    if (PyLong_CheckExact(object)) {
      value = PyLong_AsLongLongAndOverflow(object, &overflow);
      return !overflow;
    }
    return false;
  }
  int64_t get() const { return value; }
};

template <>
struct Argument<bool> : PlainArgument {
  bool value = false;
  bool read(PyObject* object) {
    value = object == Py_True;
    return PyBool_Check(object);
  }
  bool get() const { return value; }
};

template <>
struct Argument<std::optional<c10::string_view>> : PlainArgument {
  std::optional<c10::string_view> value;
  bool read(PyObject* object) {
    if (object == Py_None) {
      return true;
    }
    if (!PyUnicode_CheckExact(object)) {
      return false;
    }
    Py_ssize_t length = 0;
    const char* text = PyUnicode_AsUTF8AndSize(object, &length);
    if (!text) {
      throw python_error();
    }
    value = c10::string_view(text, static_cast<std::size_t>(length));
    return true;
  }
  std::optional<c10::string_view> get() const { return value; }
};

template <>
struct Argument<c10::string_view> : Argument<std::optional<c10::string_view>> {
  bool read(PyObject* object) {
    return object != Py_None && Argument<std::optional<c10::string_view>>::read(object);
  }
  c10::string_view get() const { return *value; }
};

// A list of tensors.
template <>
struct Argument<at::TensorList> {
  c10::SmallVector<Tensor, 16> values;
  bool read(PyObject* object) {
    if (!PyList_CheckExact(object)) {
      return false;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(object); ++i) {
      Argument<const Tensor&> tensor;
      if (!tensor.read(PyList_GET_ITEM(object, i))) {
        return false;
      }
      values.push_back(tensor.get());
    }
    return true;
  }
  at::TensorList get() const { return values; }
  bool is_large() const {
    return std::any_of(values.begin(), values.end(), [](const Tensor& tensor) {
      return Argument<const Tensor&>{&tensor}.is_large();
    });
  }
};

// A tuple of numbers.
template <>
struct Argument<at::ArrayRef<double>> : PlainArgument {
  c10::SmallVector<double, 4> values;
  bool read(PyObject* object) {
    if (!PyTuple_CheckExact(object)) {
      return false;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(object); ++i) {
      Argument<double> number;
      if (!number.read(PyTuple_GET_ITEM(object, i))) {
        return false;
      }
      values.push_back(number.value);
    }
    return true;
  }
  at::ArrayRef<double> get() const { return values; }
};

template <>
struct Argument<c10::SymInt> : Argument<int64_t> {};

// An integer for every dimension, or a tuple with one for each.
template <>
struct Argument<c10::SymIntArrayRef> : PlainArgument {
  c10::SmallVector<c10::SymInt, 3> values;
  bool read(PyObject* object) {
    const bool is_tuple = PyTuple_CheckExact(object);
    for (Py_ssize_t i = 0; i < (is_tuple ? PyTuple_GET_SIZE(object) : 1); ++i) {
      Argument<int64_t> number;
      if (!number.read(is_tuple ? PyTuple_GET_ITEM(object, i) : object)) {
        return false;
      }
      values.emplace_back(number.value);
    }
    return true;
  }
  c10::SymIntArrayRef get() const { return values; }
};

// ---- a function
// ----------------------------------------------------------------------------------

// fastact.overrides.call(name, *args): what is not served here.
inline PyObject* hand_on(const char* name, PyObject* const* args, Py_ssize_t count) {
  // A plain static would hold its guard while the import lets go of the GIL: a deadlock.
  PYBIND11_CONSTINIT static pybind11::gil_safe_call_once_and_store<pybind11::object> storage;
  const pybind11::object& call =
      storage
          .call_once_and_store_result(
              [] { return pybind11::module_::import("fastact.overrides").attr("call"); })
          .get_stored();
  const pybind11::str text(name);
  c10::SmallVector<PyObject*, 16> all{text.ptr()};
  all.append(args, args + count);
  return PyObject_Vectorcall(call.ptr(), all.data(), all.size(), nullptr);
}

inline PyObject* wrap(Tensor&& tensor) { return THPVariable_Wrap(std::move(tensor)); }

// A tuple of them.
template <class... T>
PyObject* wrap(std::tuple<T...>&& tensors) {
  pybind11::tuple all(sizeof...(T));
  Py_ssize_t i = 0;
  std::apply(
      [&](auto&&... tensor) {
        (PyTuple_SET_ITEM(all.ptr(), i++, THPVariable_Wrap(std::move(tensor))), ...);
      },
      std::move(tensors));
  return all.release().ptr();
}

// f(), without the GIL for a large call. An error that does not name the operator gets its name.
template <class F>
auto run(const char* name, bool is_large, const F& f) -> decltype(f()) {
  try {
    if (is_large) {
      const pybind11::gil_scoped_release release;
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

template <const auto& op, auto... kLast>
struct Function;

// The Python function of an operator. kLast: what the last arguments are where they are left out.
template <class Result, class... A, const Operator<Result(A...)>& op, auto... kLast>
struct Function<op, kLast...> {
  static constexpr Py_ssize_t kCount = sizeof...(A);
  static constexpr Py_ssize_t kLeast = kCount - sizeof...(kLast);

  static PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t count) {
    HANDLE_TH_ERRORS
    return call_with(args, count, std::index_sequence_for<A...>());
    END_HANDLE_TH_ERRORS
  }

 private:
  template <std::size_t... I>
  static PyObject* call_with(PyObject* const* args, Py_ssize_t count, std::index_sequence<I...>) {
    std::tuple<Argument<A>...> arguments;
    if (C10_UNLIKELY(count < kLeast || count > kCount || at::impl::torch_function_mode_enabled() ||
                     !(read<I>(std::get<I>(arguments), args, count) && ...))) {
      PyErr_Clear();
      return hand_on(op.name(), args, count);
    }
    const bool is_large = (std::get<I>(arguments).is_large() || ...);
    const auto call = [&]() -> Result { return op.call(std::get<I>(arguments).get()...); };
    if constexpr (std::is_same_v<Result, Tensor&>) {  // in place
      run(op.name(), is_large, call);
      return Py_NewRef(args[0]);
    } else {
      return wrap(run(op.name(), is_large, call));
    }
  }

  template <Py_ssize_t kIndex, class T>
  static bool read(T& argument, PyObject* const* args, Py_ssize_t count) {
    if constexpr (kIndex >= kLeast) {
      if (kIndex >= count) {
        argument.value = std::get<kIndex - kLeast>(std::tuple(kLast...));
        return true;
      }
    }
    return argument.read(args[kIndex]);
  }
};

// Adds a Python function to a module.
inline void add(PyObject* module, const char* name, _PyCFunctionFast function) {
  // PyCFunction keeps a pointer to its definition for as long as it lives: as long as the process.
  auto* definition = new PyMethodDef{
      strdup(name), reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
      METH_FASTCALL, nullptr};
  PyObject* object = PyCFunction_NewEx(definition, nullptr, nullptr);
  if (!object || PyModule_AddObject(module, name, object) < 0) {
    throw pybind11::error_already_set();
  }
}

}  // namespace fastact
