#include "cpu/score_strip.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "bindings.h"

namespace py = pybind11;

namespace pml_fast {
namespace {

ScoreStrip strip(Address scores, Address labels, Address ref_labels, int64_t rows, int64_t columns, int64_t first,
                 int64_t column, bool itself, bool mirrored, bool is_double, int threads) {
  return {
      at<void>(scores), at<int64_t>(labels), at<int64_t>(ref_labels), rows, columns, first, column, itself, mirrored, is_double,
      threads};
}

// start, rank, anchor, other, seen, next
DrawnPairs drawn_pairs(const std::array<Address, 6>& given) {
  return {at<int64_t>(given[0]), at<int64_t>(given[1]), at<int64_t>(given[2]),
          at<int64_t>(given[3]), at<int64_t>(given[4]), at<int64_t>(given[5])};
}

}  // namespace

void bind_score_strip(py::module_& m) {
  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<ScoreStrip>(m, "ScoreStrip").def(py::init(&strip));
  m.def(
      "count_digits",
      [](const ScoreStrip& s, double sign, int shift, Address prefix, Address counts, Address total) {
        PML_FAST_DISPATCH(count_digits(s, sign, shift, at<int64_t>(prefix), at<int64_t>(counts), at<int64_t>(total)));
      },
      Release());
  m.def(
      "find_neighbours",
      [](const ScoreStrip& s, double sign, Address key, int64_t n, Address ties, Address below, Address above) {
        PML_FAST_DISPATCH(
            find_neighbours(s, sign, at<int64_t>(key), n, at<int64_t>(ties), at<int64_t>(below), at<int64_t>(above)));
      },
      Release());
  m.def(
      "widen_range",
      [](const ScoreStrip& s, Address low, Address high) { PML_FAST_DISPATCH(widen_range(s, at<void>(low), at<void>(high))); },
      Release());
  m.def(
      "count_bins",
      [](const ScoreStrip& s, Address edges, int64_t bins, Address counts) {
        PML_FAST_DISPATCH(count_bins(s, {at<void>(edges), bins}, at<int64_t>(counts)));
      },
      Release());
  m.def(
      "locate_pairs",
      [](const ScoreStrip& s, Address edges, int64_t bins, const std::array<Address, 6>& positives,
         const std::array<Address, 6>& negatives) {
        const DrawnPairs drawn[2] = {drawn_pairs(positives), drawn_pairs(negatives)};
        PML_FAST_DISPATCH(locate_pairs(s, {at<void>(edges), bins}, drawn));
      },
      Release());
}

}  // namespace pml_fast
