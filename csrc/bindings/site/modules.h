// Looking at modules without running anybody's code.
#pragma once

#include <array>

#include "bindings/site/tables.h"

namespace fastact::site {

// How looking ends: known, not to be fused, or for Python to say.
enum class Look { kYes, kNo, kPython };

// Thrown where Python has to decide after all.
struct AskPython {};

inline unsigned int version_of(PyTypeObject* type) {
#if PY_VERSION_HEX < 0x030D0000
  return PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG) ? type->tp_version_tag : 0;
#else
  return type->tp_version_tag;
#endif
}

// Whether a call of the class runs the forward it was born with.
bool is_as_born(PyTypeObject* type, Born& born);

// Whether a call of the module does nothing but run its class's forward; of its dict.
bool is_undisturbed(PyObject* own);

// Whether calls may be left out now. Modes, and somebody who observes, are for Python.
Look surroundings();

// A module that follows a layer.
Look read_module(PyObject* module, Found& found);

// The statistics, weight and bias of a norm, from its dict; null where there is no such entry.
std::array<PyObject*, 4> norm_tensors(PyObject* own);

}  // namespace fastact::site
