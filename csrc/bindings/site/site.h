// Sites of converted models: see the files beside this.
#pragma once

#include <Python.h>

namespace fastact::site {

// Adds to the Python module: Site, run_sequence, and what fastact/conversion/site.py sets up.
void add_site(PyObject* module);

}  // namespace fastact::site
