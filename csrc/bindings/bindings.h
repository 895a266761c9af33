#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace pml_fast {

// Tensors cross as addresses.
using Address = uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Each engine binds its own functions; addresses and sizes are checked by the Python glue that calls them.
void bind_pairwise(pybind11::module_& m);
void bind_triplet(pybind11::module_& m);
void bind_indexed(pybind11::module_& m);

}  // namespace pml_fast
