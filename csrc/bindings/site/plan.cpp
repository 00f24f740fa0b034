#include "bindings/site/plan.h"

#include <torch/csrc/Exceptions.h>

#include "bindings/site/modules.h"

namespace fastact::site {

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

Link link_from(pybind11::handle written) {
  Link link;
  const auto kind = written.attr("kind").cast<std::string>();
  link.kind = kind == "call" ? Kind::kCall : kind == "method" ? Kind::kMethod : Kind::kSum;
  link.has_callee = !written.attr("callee").is_none();
  link.callee = operand_from(written.attr("callee"));
  link.method = written.attr("name");
  for (const auto operand : written.attr("args").cast<pybind11::tuple>()) {
    link.args.push_back(operand_from(operand));
  }
  const auto kwargs = written.attr("kwargs").cast<pybind11::tuple>();
  pybind11::tuple keyword_names(kwargs.size());
  for (std::size_t i = 0; i < kwargs.size(); ++i) {
    const auto pair = kwargs[i].cast<pybind11::tuple>();
    keyword_names[i] = pair[0];
    link.kwargs.emplace_back(pair[0], operand_from(pair[1]));
  }
  if (kwargs.size() > 0) {
    link.keyword_names = keyword_names;
  }
  link.first = written.attr("first").cast<bool>();
  link.statement = written.attr("statement").cast<Py_ssize_t>();
  return link;
}

namespace {

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

}  // namespace

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

}  // namespace fastact::site
