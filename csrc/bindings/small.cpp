#include "cpu/small.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"

namespace py = pybind11;

namespace pml_fast {
namespace {

int pair_loss(Address x, Address labels, Address rule, int64_t n, int64_t d, Address y, Address y_labels, int64_t m,
              const std::string& distance, bool normalize, bool gated, double sign, double fixed_level,
              const std::vector<double>& logit, int threads, const std::string& spec, const std::vector<double>& params,
              const std::vector<std::pair<double, double>>& limits, const std::vector<std::pair<std::string, bool>>& folds,
              bool bidirectional, const std::vector<double>& trained, std::optional<double> epsilon, Address total,
              Address terms, Address dx, Address dy, Address by_log_scale, Address by_bias, bool is_double) {
  const SmallBatch batch{
      at<void>(x), at<int64_t>(labels), at<void>(rule), n, d, distance_named(distance), normalize, gated, dx != 0,
      sign,        fixed_level,         threads};
  // A scale, or a scale and a bias.
  const bool biased = trained.size() > 1;
  SmallLoss loss{spec,
                 params,
                 open_intervals(limits),
                 {},
                 at<void>(y),
                 at<int64_t>(y_labels),
                 m,
                 logit.at(0),
                 logit.at(1),
                 logit.at(2),
                 bidirectional,
                 biased,
                 trained.empty() ? 1.0 : trained[0],
                 biased ? trained[1] : 0.0,
                 epsilon};
  for (const auto& [fold, element] : folds) loss.terms.push_back({fold, element});
  py::gil_scoped_release release;
  const SmallOutputs out{at<void>(total), at<void>(terms),        at<void>(dx),
                         at<void>(dy),    at<void>(by_log_scale), at<void>(by_bias)};
  return static_cast<int>(PML_FAST_DISPATCH(small_pair_loss(batch, loss, out, is_double)));
}

void triplet_loss(Address x, Address labels, Address rule, int64_t n, int64_t d, const std::string& distance, bool normalize,
                  bool gradients, double sign, int threads, double margin, bool smooth, const std::string& select,
                  double select_margin, bool positive_only, const std::string& fold, Address loss, Address dx, bool is_double) {
  const SmallBatch batch{at<void>(x), at<int64_t>(labels), at<void>(rule), n,   d,      distance_named(distance), normalize,
                         false,       gradients,           sign,           0.0, threads};
  const TripletOptions options{margin, select_margin, smooth, select_named(select), positive_only, sign};
  py::gil_scoped_release release;
  PML_FAST_DISPATCH(small_triplet_loss(batch, options, fold, at<void>(loss), at<void>(dx), is_double));
}

void extreme(Address x, Address labels, Address rule, int64_t n, int64_t d, const std::string& distance, bool normalize,
             int threads, bool positive, bool largest, Address value, Address index, bool is_double) {
  const SmallBatch batch{
      at<void>(x), at<int64_t>(labels), at<void>(rule), n, d, distance_named(distance), normalize, false, false, 1.0, 0.0,
      threads};
  py::gil_scoped_release release;
  PML_FAST_DISPATCH(small_extreme(batch, positive, largest, at<void>(value), at<int64_t>(index), is_double));
}

void hardest(Address x, Address labels, int64_t n, int64_t d, const std::string& distance, bool normalize, double sign,
             int threads, double share, Address rule, Address cut, bool is_double) {
  const SmallBatch batch{
      at<void>(x), at<int64_t>(labels), nullptr, n, d, distance_named(distance), normalize, false, false, sign, 0.0, threads};
  py::gil_scoped_release release;
  PML_FAST_DISPATCH(small_hardest(batch, share, at<void>(rule), at<int64_t>(cut), is_double));
}

int soft_targets(Address x, int64_t n, int64_t d, Address y, int64_t m, bool own, const std::string& distance, bool normalize,
                 int threads, Address row, Address column, Address target, int64_t count, double scale, const std::string& fold,
                 std::pair<double, double> limits, Address loss, Address dx, Address dy, bool is_double) {
  const SmallBatch batch{at<void>(x), nullptr, nullptr, n,   d,   distance_named(distance),
                         normalize,   false,   dx != 0, 1.0, 0.0, threads};
  const SmallTargets targets{at<void>(y),      m,     own,   at<int64_t>(row), at<int64_t>(column),
                             at<void>(target), count, scale, {fold, true},     open_intervals({limits})[0]};
  py::gil_scoped_release release;
  return static_cast<int>(
      PML_FAST_DISPATCH(small_soft_targets(batch, targets, at<void>(loss), at<void>(dx), at<void>(dy), is_double)));
}

SmallPairs pairs(Address x, int64_t n, int64_t d, Address i, Address j, int64_t count, const std::string& distance,
                 bool normalize) {
  return {at<void>(x), n, d, at<int64_t>(i), at<int64_t>(j), count, distance_named(distance), normalize};
}

}  // namespace

void bind_small(py::module_& m) {
  m.def("small_triplet_loss", &triplet_loss);
  m.def("small_extreme", &extreme);
  m.def("small_hardest", &hardest);
  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<SmallPairs>(m, "SmallPairs");
  m.def("small_pairs", &pairs);
  m.def(
      "small_pair_scores",
      [](const SmallPairs& list, Address scores, bool is_double) {
        return PML_FAST_DISPATCH(small_pair_scores(list, at<void>(scores), is_double));
      },
      Release());
  m.def(
      "small_pair_gradients",
      [](const SmallPairs& list, Address grad, Address dx, bool is_double) {
        PML_FAST_DISPATCH(small_pair_gradients(list, at<void>(grad), at<void>(dx), is_double));
      },
      Release());
  m.def(
      "small_listed_triplets",
      [](const SmallPairs& list, Address keep, double margin, double sign, bool smooth, std::pair<double, double> limits,
         const std::string& fold, Address loss, Address dx, bool is_double) {
        const SmallTriplets triplets{list.count / 2, at<bool>(keep), margin, sign, smooth, {limits.first, limits.second}, fold};
        return PML_FAST_DISPATCH(small_listed_triplets(list, triplets, at<void>(loss), at<void>(dx), is_double));
      },
      Release());
  m.def("small_pair_loss", &pair_loss);
  m.def("small_soft_targets", &soft_targets);
}

}  // namespace pml_fast
