#include "bindings/site/sequence.h"

#include <torch/csrc/Exceptions.h>

#include <vector>

#include "bindings/site/fusion.h"

namespace fastact::site {

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
  // Between two convolutions nobody sees how the value lies.
  bool is_turned = false;
  const auto turn_back = [&] {
    if (is_turned) {
      value = pybind11::reinterpret_steal<Object>(
          THPVariable_Wrap(turned_back(THPVariable_Unpack(value.ptr()))));
      is_turned = false;
    }
  };
  // The rest, from these modules on, by Python.
  const auto python = [&](const std::vector<Object>& fetched) {
    turn_back();
    pybind11::list first;
    for (const Object& module : fetched) {
      first.append(module);
    }
    return t.run_sequence(first, modules, value, frozen).release().ptr();
  };
  const auto call = [&](const Object& module) {
    turn_back();
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
      fusion.is_turned = is_turned;
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
    bool images_follow = false;
    while ((following = next())) {
      if (t.layers.count(Py_TYPE(following.ptr()))) {
        // Its operator does not write to its input.
        Fusion unused;
        layer_follows =
            unused.take_layer(following.ptr(), args[1], false) == Look::kYes && is_plain(args[1]);
        images_follow = layer_follows && unused.kind->dims == fusion.kind->dims;
        break;
      }
      const auto norm = tables().norms.find(Py_TYPE(following.ptr()));
      if (norm != tables().norms.end()) {
        look = fusion.take_norm(following.ptr(), norm->second);
      } else {
        Found found;
        look = read_module(following.ptr(), found);
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
    const bool stays_turned = images_follow && fusion.may_turn();
    try {
      fused = try_run(fusion, layer_follows, stays_turned);
    } catch (const AskPython&) {
      std::vector<Object> fetched{layer};
      fetched.insert(fetched.end(), taken.begin(), taken.end());
      if (following) {
        fetched.push_back(following);
      }
      return python(fetched);
    }
    if (fused) {
      is_turned = stays_turned;
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

}  // namespace fastact::site
