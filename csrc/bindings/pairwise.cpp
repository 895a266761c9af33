#include "cpu/pairwise.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "bindings.h"
#include "runtime/layout.h"

namespace py = pybind11;

namespace pml_fast {
namespace {

void layout(Address row_labels, int64_t rows, Address col_labels, int64_t cols, bool itself, Address row_order,
            Address col_order, Address start, Address end, Address offset, Address col_start, Address col_end) {
  class_order(at<int64_t>(row_labels), rows, at<int64_t>(row_order));
  if (!itself) class_order(at<int64_t>(col_labels), cols, at<int64_t>(col_order));
  const Address columns = itself ? row_order : col_order;
  class_runs(at<int64_t>(row_labels), at<int64_t>(row_order), rows, at<int64_t>(col_labels), at<int64_t>(columns), cols,
             at<int64_t>(start), at<int64_t>(end));
  int64_t total = 0;
  for (int64_t i = 0; i < rows; ++i) {
    at<int64_t>(offset)[i] = total;
    total += at<int64_t>(end)[i] - at<int64_t>(start)[i];
  }
  at<int64_t>(offset)[rows] = total;
  if (!itself)
    class_runs(at<int64_t>(col_labels), at<int64_t>(columns), cols, at<int64_t>(row_labels), at<int64_t>(row_order), rows,
               at<int64_t>(col_start), at<int64_t>(col_end));
}

// The rank of each label among the different ones.
void class_ranks(Address labels, int64_t count, Address ranks) {
  const int64_t* label = at<int64_t>(labels);
  std::vector<int64_t> order(count);
  class_order(label, count, order.data());
  int64_t rank = 0;
  for (int64_t k = 0; k < count; ++k) {
    rank += k > 0 && label[order[k]] != label[order[k - 1]];
    at<int64_t>(ranks)[order[k]] = rank;
  }
}

PairLayout problem(Address x, Address y, Address start, Address end, Address offset, Address col_start, Address col_end,
                   Address rule, Address own, int64_t n, int64_t m, int64_t d, bool itself, bool exclude_self,
                   const std::string& distance, int threads) {
  PairLayout g{};
  g.x = at<void>(x);
  g.y = at<void>(y);
  g.start = at<int64_t>(start);
  g.end = at<int64_t>(end);
  g.offset = at<int64_t>(offset);
  g.col_start = at<int64_t>(col_start);
  g.col_end = at<int64_t>(col_end);
  g.rule = at<void>(rule);
  g.n = n;
  g.m = m;
  g.d = d;
  g.itself = itself;
  g.exclude_self = exclude_self;
  g.own = at<int64_t>(own);
  g.distance = distance_named(distance);
  g.threads = threads;
  return g;
}

std::unique_ptr<PairEngine> make(const PairLayout& g, const std::string& spec, const std::vector<double>& params, double sign,
                                 const std::vector<std::pair<double, double>>& limits, double fixed_level, bool is_double) {
  return PML_FAST_DISPATCH(make_pair_engine(spec, params, sign, open_intervals(limits), g, fixed_level, is_double));
}

}  // namespace

void bind_pairwise(py::module_& m) {
  using Release = py::call_guard<py::gil_scoped_release>;
  m.def("class_ranks", &class_ranks);
  m.def("layout", &layout);
  py::class_<PositivePairs>(m, "PositivePairs")
      .def(py::init([](Address row_labels, int64_t rows, Address col_labels, int64_t cols, bool itself) {
        return PositivePairs(at<int64_t>(row_labels), rows, at<int64_t>(col_labels), cols, itself);
      }))
      .def("__len__", &PositivePairs::count)
      .def("write", [](const PositivePairs& pairs, Address row, Address column, Address different) {
        pairs.write(at<int64_t>(row), at<int64_t>(column), at<int64_t>(different));
      });
  py::class_<PairLayout>(m, "PairLayout");
  m.def("problem", &problem);
  m.def("pair_engine", &make);
  py::class_<PairEngine>(m, "PairEngine")
      .def("mirror_into", &PairEngine::mirror_into, py::keep_alive<1, 2>())
      .def("search", &PairEngine::search)
      .def("score_positives", &PairEngine::score_positives, Release())
      .def(
          "fold",
          [](PairEngine& e, Address tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t mirror,
             bool scored) { e.fold(at<void>(tile), ld, i0, i1, j0, j1, mirror, scored); },
          Release())
      .def(
          "fold_extreme",
          [](PairEngine& e, Address tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t mirror,
             bool largest, Address value, Address index, Address mirror_value, Address mirror_index) {
            e.fold_extreme(at<void>(tile), ld, i0, i1, j0, j1, mirror, largest, at<void>(value), at<int64_t>(index),
                           at<void>(mirror_value), at<int64_t>(mirror_index));
          },
          Release())
      .def(
          "positive_extreme",
          [](PairEngine& e, bool largest, Address value, Address index) {
            e.positive_extreme(largest, at<void>(value), at<int64_t>(index));
          },
          Release())
      .def(
          "coefficients",
          [](PairEngine& e, Address tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t mirror,
             bool scored,
             bool both_roles) { return e.coefficients(at<void>(tile), ld, i0, i1, j0, j1, mirror, scored, both_roles); },
          Release())
      .def("finish",
           [](PairEngine& e, Address rows) {
             bool exists[2];
             e.finish(at<void>(rows), exists);
             return py::make_tuple(exists[0], exists[1]);
           })
      .def("set_weights", [](PairEngine& e, Address w) { e.set_weights(at<void>(w)); })
      .def("begin_collecting", &PairEngine::begin_collecting)
      .def(
          "collect",
          [](PairEngine& e, Address tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t mirror,
             bool both_roles) { return e.collect(at<void>(tile), ld, i0, i1, j0, j1, mirror, both_roles); },
          Release())
      .def("end_sweep", &PairEngine::end_sweep)
      .def_property_readonly("sweeps", &PairEngine::sweeps)
      .def("set_levels", [](PairEngine& e, Address levels) { e.set_levels(at<void>(levels)); })
      .def("set_level", &PairEngine::set_level)
      .def(
          "finish_gradients", [](PairEngine& e, Address dx, Address dy) { e.finish_gradients(at<void>(dx), at<void>(dy)); },
          Release())
      .def_property_readonly("terms", &PairEngine::terms);
}

}  // namespace pml_fast
