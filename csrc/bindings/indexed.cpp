#include "cpu/indexed.h"

#include <pybind11/pybind11.h>

#include <string>

#include "bindings.h"
#include "cpu/pair_exponents.h"

namespace py = pybind11;

namespace pml_fast {
namespace {

PairList pairs(Address x, Address y, Address i, Address j, int64_t count, int64_t d, const std::string& distance, int threads) {
  return {at<void>(x), at<void>(y), at<int64_t>(i), at<int64_t>(j), count, d, distance_named(distance), threads};
}

ExponentPairs exponent_pairs(Address x, Address y, Address i, Address j, int64_t count, int64_t n, int64_t m, int64_t d,
                             bool normalize, double slope, int threads) {
  return {at<void>(x), at<void>(y), at<int64_t>(i), at<int64_t>(j), count, n, m, d, normalize, slope, threads};
}

}  // namespace

void bind_indexed(py::module_& m) {
  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<PairList>(m, "PairList");
  m.def("pair_list", &pairs);
  m.def(
      "score_list",
      [](const PairList& list, Address scores, bool is_double) {
        PML_FAST_DISPATCH(score_list(list, at<void>(scores), is_double));
      },
      Release());
  m.def(
      "add_list_gradients",
      [](const PairList& list, Address scores, Address grad_scores, bool columns, Address grad, int64_t rows, bool is_double) {
        PML_FAST_DISPATCH(
            add_list_gradients(list, at<void>(scores), at<void>(grad_scores), columns, at<void>(grad), rows, is_double));
      },
      Release());
  py::class_<ExponentPairs>(m, "ExponentPairs");
  m.def("exponent_pairs", &exponent_pairs);
  m.def(
      "pair_exponents",
      [](const ExponentPairs& list, Address out, bool is_double) {
        PML_FAST_DISPATCH(pair_exponents(list, at<void>(out), is_double));
      },
      Release());
  m.def(
      "pair_exponent_gradients",
      [](const ExponentPairs& list, Address grad, Address dx, Address dy, bool is_double) {
        return PML_FAST_DISPATCH(pair_exponent_gradients(list, at<void>(grad), at<void>(dx), at<void>(dy), is_double));
      },
      Release());
}

}  // namespace pml_fast
