#include "cpu/histogram.h"

#include <pybind11/pybind11.h>

#include <string>

#include "bindings.h"
#include "cpu/small_histogram.h"

namespace py = pybind11;

namespace pml_fast {
namespace {

std::unique_ptr<HistogramEngine> make(const PairLayout& g, double low, double delta, int64_t count, bool triplets,
                                      bool is_double) {
  const HistogramOptions options{low, delta, count, triplets};
  return PML_FAST_DISPATCH(make_histogram_engine(options, g, is_double));
}

bool small_loss(Address x, Address labels, int64_t n, int64_t d, const std::string& distance, bool normalize, int threads,
                double low, double delta, int64_t count, bool triplets, Address before, double momentum, Address after,
                Address loss, Address dx, bool is_double) {
  const SmallBatch batch{
      at<void>(x), at<int64_t>(labels), nullptr, n, d, distance_named(distance), normalize, false, dx != 0, 1.0, 0.0, threads};
  const HistogramOptions options{low, delta, count, triplets};
  const RunningHistogram running{at<double>(before), momentum, at<double>(after)};
  py::gil_scoped_release release;
  return PML_FAST_DISPATCH(small_histogram_loss(batch, options, running, at<double>(loss), at<void>(dx), is_double));
}

}  // namespace

void bind_histogram(py::module_& m) {
  using Release = py::call_guard<py::gil_scoped_release>;
  m.def("histogram_engine", &make);
  m.def("small_histogram_loss", &small_loss);
  py::class_<HistogramEngine>(m, "HistogramEngine")
      .def(
          "fold",
          [](HistogramEngine& e, Address tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0) {
            e.fold(at<void>(tile), ld, i0, i1, j0);
          },
          Release())
      .def("sums", [](const HistogramEngine& e, Address out) { return e.sums(at<double>(out)); })
      .def("set_slopes", [](HistogramEngine& e, Address slopes) { e.set_slopes(at<double>(slopes)); })
      .def(
          "coefficients",
          [](const HistogramEngine& e, Address tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, bool scored, Address own) {
            return e.coefficients(at<void>(tile), ld, i0, i1, j0, scored, at<void>(own));
          },
          Release());
}

}  // namespace pml_fast
