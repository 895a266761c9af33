#include "cpu/small.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings.h"

namespace py = pybind11;

namespace pml_fast {
namespace {

void pair_loss(Address x, Address labels, Address rule, int64_t n, int64_t d, const std::string& distance, bool normalize,
               bool gated, bool gradients, double sign, double fixed_shift, int threads, const std::string& spec,
               const std::vector<double>& params, const std::vector<std::pair<double, double>>& limits,
               const std::vector<std::pair<std::string, bool>>& folds, Address terms, Address dx, bool is_double) {
  const SmallBatch batch{
      at<void>(x), at<int64_t>(labels), at<void>(rule), n,           d,      distance_named(distance), normalize,
      gated,       gradients,           sign,           fixed_shift, threads};
  std::vector<SmallTerm> reductions;
  for (const auto& [fold, element] : folds) reductions.push_back({fold, element});
  const std::vector<Limits> intervals = open_intervals(limits);
  py::gil_scoped_release release;
  PML_FAST_DISPATCH(small_pair_loss(batch, spec, params, intervals, reductions, at<void>(terms), at<void>(dx), is_double));
}

}  // namespace

void bind_small(py::module_& m) {
  m.def("small_pair_loss", &pair_loss);
}

}  // namespace pml_fast
