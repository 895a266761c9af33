#include "cpu/knn.h"

#include <pybind11/pybind11.h>

#include <string>

#include "bindings.h"

namespace py = pybind11;

namespace pml_fast {
namespace {

std::unique_ptr<KnnEngine> make(Address x, Address y, Address start, Address end, Address index, Address own, int64_t n,
                                int64_t m, int64_t d, const std::string& distance, double sign, int threads, bool is_double) {
  const KnnLayout layout{at<void>(x),
                         at<void>(y),
                         at<int64_t>(start),
                         at<int64_t>(end),
                         at<int64_t>(index),
                         at<int64_t>(own),
                         n,
                         m,
                         d,
                         distance_named(distance),
                         sign,
                         threads};
  return PML_FAST_DISPATCH(make_knn_engine(layout, is_double));
}

}  // namespace

void bind_knn(py::module_& m) {
  using Release = py::call_guard<py::gil_scoped_release>;
  m.def("knn_engine", &make);
  py::class_<KnnEngine>(m, "KnnEngine")
      .def(
          "nearest",
          [](KnnEngine& e, Address products, int64_t ld, int64_t i0, int64_t i1, int64_t k, Address order, Address column) {
            e.nearest(at<void>(products), ld, i0, i1, k, at<void>(order), at<int64_t>(column));
          },
          Release())
      .def(
          "ranks",
          [](KnnEngine& e, Address products, int64_t ld, int64_t i0, int64_t i1, Address offset, Address ranks) {
            e.ranks(at<void>(products), ld, i0, i1, at<int64_t>(offset), at<int64_t>(ranks));
          },
          Release());
}

}  // namespace pml_fast
