#pragma once

#include <pybind11/pybind11.h>

namespace pml_fast {

// Each engine binds its own functions; addresses and sizes are checked by the Python glue that calls them.
void bind_pairwise(pybind11::module_& m);

}  // namespace pml_fast
