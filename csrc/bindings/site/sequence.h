// torch.nn.Sequential of a converted model.
#pragma once

#include <Python.h>

namespace fastact::site {

// run_sequence(sequential, input, frozen): its modules one after the other, each layer with those
// after it that it can be fused with.
PyObject* run_sequence(PyObject*, PyObject* const* args, Py_ssize_t count);

}  // namespace fastact::site
