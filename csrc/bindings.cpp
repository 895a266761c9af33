// The Python module pml_fast._C. Kernels take addresses, sizes and strides: no type of torch appears here.
#include "bindings/bindings.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/isa.h"
#include "runtime/parallel.h"

namespace py = pybind11;

namespace {

std::vector<std::string> compiled_isa_names() {
  std::vector<std::string> names;
  for (pml_fast::Isa isa : pml_fast::compiled_isas()) names.emplace_back(pml_fast::isa_name(isa));
  return names;
}

py::dict build_info() {
  py::dict info;
  info["version"] = PML_FAST_VERSION;
  info["compiler"] = PML_FAST_COMPILER;
  info["flags"] = PML_FAST_FLAGS;
  info["isas"] = compiled_isa_names();
  info["cuda"] = PML_FAST_WITH_CUDA != 0;
  return info;
}

void bind_isa(py::module_& m) {
  m.def(
      "isa", [] { return std::string(pml_fast::isa_name(pml_fast::active_isa())); },
      "The instruction set in use: 'baseline', 'avx2' or 'avx512'; ValueError when PML_FAST_ISA cannot run.");
  m.def(
      "set_isa", [](const std::string& name) { pml_fast::set_isa(pml_fast::parse_isa(name, "isa")); }, py::arg("name"),
      "Use this instruction set from now on; ValueError when it cannot run here.");
  m.def("compiled_isas", &compiled_isa_names, "The instruction sets this module was compiled for.");
  m.def("build_info", &build_info, "Version, compiler, flags, instruction sets, and whether CUDA is in.");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled CPU kernels of pml_fast.";
  bind_isa(m);
  pml_fast::bind_pairwise(m);
  pml_fast::bind_triplet(m);
  pml_fast::bind_indexed(m);
  pml_fast::bind_small(m);
  pml_fast::bind_row_functions(m);
  pml_fast::bind_strip(m);
  pml_fast::bind_score_strip(m);
  pml_fast::bind_knn(m);
  pml_fast::bind_classes(m);
  pml_fast::bind_histogram(m);
  pml_fast::bind_label_sets(m);
  m.def("threads_from", &pml_fast::parallel_runtime, "What runs the threads: 'openmp' (the one torch loaded) or 'serial'.");
}
