#include "cpu/triplet.h"

#include <pybind11/pybind11.h>

#include <string>

#include "bindings.h"

namespace py = pybind11;

namespace pml_fast {
namespace {

std::unique_ptr<TripletEngine> make(const PairLayout& g, double margin, bool smooth, const std::string& select,
                                    double select_margin, bool positive_only, double sign, bool is_double) {
  const TripletOptions options{margin, select_margin, smooth, select_named(select), positive_only, sign};
  return PML_FAST_DISPATCH(make_triplet_engine(options, g, is_double));
}

}  // namespace

void bind_triplet(py::module_& m) {
  using Release = py::call_guard<py::gil_scoped_release>;
  m.def("triplet_engine", &make);
  py::class_<TripletEngine>(m, "TripletEngine")
      .def("begin_strip", &TripletEngine::begin_strip, Release())
      .def(
          "prepare",
          [](TripletEngine& e, Address products, int64_t ld, int64_t i0, int64_t i1, int64_t j0) {
            e.prepare(at<void>(products), ld, i0, i1, j0);
          },
          Release())
      .def(
          "fold",
          [](TripletEngine& e, Address tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, bool gradients,
             Address w) { return e.fold(at<void>(tile), ld, i0, i1, j0, j1, gradients, at<void>(w)); },
          Release())
      .def(
          "symmetrise", [](const TripletEngine& e, Address tile, int64_t n) { e.symmetrise(at<void>(tile), n); }, Release())
      .def("rows", [](const TripletEngine& e, Address out) { e.rows(at<double>(out)); })
      .def(
          "finish_gradients", [](TripletEngine& e, Address dx, Address dy) { e.finish_gradients(at<void>(dx), at<void>(dy)); },
          Release())
      .def(
          "finish_strip", [](TripletEngine& e, int64_t i0, int64_t i1, Address w) { e.finish_strip(i0, i1, at<void>(w)); },
          Release());
}

}  // namespace pml_fast
