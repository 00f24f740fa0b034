// The call of a site of a converted model (fastact/conversion/site.py, which says what a site is
// and decides in full). Here the decisions that are common are confirmed by comparing pointers: 0.1
// us for a layer and 0.05 for an activation, where Python takes 10 (Zen 5).
//
// Looking at a chain runs nobody's code. So whatever is not common is left to Python, from the
// start; and what is not to be fused is called as it was written.
#include "bindings/site/site.h"

#include <torch/csrc/Exceptions.h>

#include <algorithm>
#include <memory>

#include "bindings/site/fusion.h"
#include "bindings/site/plan.h"
#include "bindings/site/sequence.h"
#include "bindings/site/weights.h"

namespace fastact::site {
namespace {

bool is_immutable(PyObject* object) {
  if (PyTuple_CheckExact(object)) {
    PyObject** const items = &PyTuple_GET_ITEM(object, 0);
    return std::all_of(items, items + PyTuple_GET_SIZE(object), is_immutable);
  }
  return object == Py_None || PyBool_Check(object) || PyFloat_CheckExact(object) ||
         PyLong_CheckExact(object) || PyUnicode_CheckExact(object);
}

// A function or a method with arguments.
Look classify(Link& link, PyObject* target, const std::vector<Object>& arguments, Found& result) {
  if (link.known_function.ptr() == target && link.known_arguments.size() == arguments.size() &&
      std::equal(arguments.begin(), arguments.end(), link.known_arguments.begin(),
                 [](const Object& a, const Object& b) { return a.ptr() == b.ptr(); })) {
    result.read = link.known;
    result.pool = link.known_pool;
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
  const auto row = found.cast<pybind11::tuple>();
  Epilogue made;
  std::optional<Pool> pool;
  if (pybind11::isinstance<pybind11::str>(row[0])) {
    // links.Epilogue: name, parameters, slope, inplace
    made.name = row[0].cast<std::string>();
    made.idle = made.name.empty();
    for (const auto number : row[1].cast<pybind11::tuple>()) {
      made.parameters.push_back(number.cast<double>());
    }
    made.in_place = row[3].cast<bool>();
  } else {
    // links.Pool: kernel, stride, padding, dilation, ceil_mode
    using Pair = std::array<int64_t, 2>;
    pool = Pool{row[0].cast<Pair>(), row[1].cast<Pair>(), row[2].cast<Pair>(), row[3].cast<Pair>(),
                row[4].cast<bool>()};
  }
  link.known_function = pybind11::reinterpret_borrow<Object>(target);
  link.known_arguments = arguments;
  link.known = result.read = made;
  link.known_pool = result.pool = pool;
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
    look = classify(link, link.method.ptr(), arguments, found);
  } else if (const auto norm = tables().norms.find(Py_TYPE(callee.ptr()));
             norm != tables().norms.end()) {
    return arguments.empty() ? fusion.take_norm(callee.ptr(), norm->second) : Look::kNo;
  } else if (PyType_IsSubtype(Py_TYPE(callee.ptr()), t.module_type)) {
    look = arguments.empty() ? read_module(callee.ptr(), found) : Look::kNo;
  } else {
    const auto bare = t.functions.find(callee.ptr());
    if (arguments.empty() && bare != t.functions.end()) {
      found.row = &bare->second;
      look = Look::kYes;
    } else if (PyCFunction_Check(callee.ptr()) || PyFunction_Check(callee.ptr())) {
      look = classify(link, callee.ptr(), arguments, found);
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
          fused = try_run(fusion);
        } else {
          Fusion shorter;
          shorter.take_layer(values[site.layer], values[site.input], site.frozen);
          for (taken = 0; taken < whole; ++taken) {
            take(site, links[taken], values, shorter);
          }
          fused = try_run(shorter);
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
  for (const auto link : plan.attr("links").cast<pybind11::tuple>()) {
    links->push_back(link_from(link));
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
  PyTypeObject type{};
  type.ob_base = PyVarObject{PyObject_HEAD_INIT(nullptr) 0};
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

}  // namespace fastact::site
