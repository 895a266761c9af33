#include "runtime/label_sets.h"

#include <pybind11/pybind11.h>

#include <memory>

#include "bindings.h"

namespace py = pybind11;

namespace pml_fast {
namespace {

std::unique_ptr<AlikePairs> find(Address sets, int64_t n, Address others, int64_t m, int64_t classes, double threshold,
                                 bool itself, bool is_double, int64_t most_shared, int threads) {
  const LabelSets rows{at<uint8_t>(sets), n, classes}, columns{at<uint8_t>(others), m, classes};
  return alike_pairs(rows, columns, {threshold, itself, is_double, most_shared}, threads);
}

void write(const AlikePairs& pairs, Address row, Address column, Address weight, bool is_double) {
  if (is_double)
    pairs.write(at<int64_t>(row), at<int64_t>(column), at<double>(weight));
  else
    pairs.write(at<int64_t>(row), at<int64_t>(column), at<float>(weight));
}

}  // namespace

void bind_label_sets(py::module_& m) {
  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<AlikePairs>(m, "AlikePairs").def("__len__", &AlikePairs::count).def("write", &write);
  m.def("alike_pairs", &find, Release());
}

}  // namespace pml_fast
