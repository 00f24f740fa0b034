// What a site was written as: its links and their operands, and how those are read.
#pragma once

#include <optional>
#include <vector>

#include "bindings/site/tables.h"

namespace fastact::site {

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
  std::optional<Pool> known_pool;
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

Operand operand_from(pybind11::handle operand);
Link link_from(pybind11::handle link);

// The operand, where reading it runs nobody's code; else null.
Object peek(const SiteObject& site, Operand& operand, PyObject* const* values);

// The operand as Python reads it. Throws what that raises.
Object now(const SiteObject& site, const Operand& operand, PyObject* const* values);

}  // namespace fastact::site
