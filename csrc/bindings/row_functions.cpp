// The row functions that CUDA blocks run (csrc/engine/*_strip.h, *_row.h): on a device where there is CUDA, and by one host
// thread, which is how they are tested without a card.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "engine/nearest_row.h"
#include "engine/select_row.h"
#include "engine/triplet_strip.h"

#if PML_FAST_WITH_CUDA
  #include "cuda/nearest.h"
  #include "cuda/select.h"
  #include "cuda/triplet.h"
#endif

namespace py = pybind11;

namespace pml_fast {
namespace {

using Release = py::call_guard<py::gil_scoped_release>;

TripletStrip triplet_strip(Address tile, Address x, Address y, Address x_norm, Address y_norm, Address begin, Address end,
                           Address own, Address intervals, Address weights, Address sums, Address counts, Address own_factors,
                           int64_t first, int64_t rows, int64_t n, int64_t m, int64_t d, const std::string& distance,
                           float margin, float select_margin, float sign, const std::string& select, bool positive_only,
                           bool gradients) {
  return {at<float>(tile),
          at<float>(x),
          at<float>(y),
          at<float>(x_norm),
          at<float>(y_norm),
          at<int64_t>(begin),
          at<int64_t>(end),
          at<int64_t>(own),
          at<float>(intervals),
          at<float>(weights),
          at<double>(sums),
          at<int64_t>(counts),
          at<float>(own_factors),
          first,
          rows,
          n,
          m,
          d,
          distance_named(distance),
          {margin, select_margin, sign, select_named(select), positive_only},
          gradients};
}

PairStrip pair_strip(Address tile, Address x, Address y, Address x_norm, Address y_norm, Address x_labels, Address y_labels,
                     Address intervals, int64_t first, int64_t rows, int64_t n, int64_t m, int64_t d,
                     const std::string& distance, bool itself) {
  return {at<float>(tile),
          at<float>(x),
          at<float>(y),
          at<float>(x_norm),
          at<float>(y_norm),
          at<int64_t>(x_labels),
          at<int64_t>(y_labels),
          at<float>(intervals),
          first,
          rows,
          n,
          m,
          d,
          distance_named(distance),
          itself};
}

NearestStrip nearest_strip(Address tile, Address x, Address y, Address x_norm, Address y_norm, int64_t first, int64_t rows,
                           int64_t m, int64_t d, int64_t k, const std::string& distance, float turn, bool itself) {
  return {at<float>(tile),          at<float>(x), at<float>(y), at<float>(x_norm), at<float>(y_norm), first, rows, m, d, k,
          distance_named(distance), turn,         itself};
}

// `lists` are the addresses of the negatives' anchors and columns, then the positives'.
PairLists pair_lists(const std::vector<Address>& lists) {
  return {{at<int64_t>(lists.at(0)), at<int64_t>(lists.at(2))}, {at<int64_t>(lists.at(1)), at<int64_t>(lists.at(3))}};
}

void run_triplets(const TripletStrip& strip, bool backwards) {
  const SerialTeam team(backwards);
  for (int64_t row = 0; row < strip.rows; ++row) {
    const int64_t i = strip.first + row;
    int64_t capacity = 1;
    while (capacity < strip.end[i] - strip.begin[i]) capacity *= 2;
    std::vector<uint64_t> memory(AnchorSpace::bytes(capacity) / sizeof(uint64_t) + 1);
    triplets_of_row(team, strip, row, AnchorSpace::in(memory.data(), capacity));
  }
}

void run_count_pairs(const PairStrip& strip, Address counts) {
  for (int64_t row = 0; row < strip.rows; ++row) count_pairs_of_row(SerialTeam(), strip, row, at<int64_t>(counts) + 2 * row);
}

void run_write_pairs(const PairStrip& strip, Address places, const std::vector<Address>& lists) {
  for (int64_t row = 0; row < strip.rows; ++row)
    write_pairs_of_row(SerialTeam(), strip, row, at<int64_t>(places) + 2 * row, pair_lists(lists));
}

void run_nearest(const NearestStrip& strip, Address keys, bool backwards) {
  if (strip.k == 0) return;
  NearestSpace space;
  for (int64_t row = 0; row < strip.rows; ++row)
    nearest_of_row(SerialTeam(backwards), strip, row, space, at<int64_t>(keys) + row * strip.k);
}

}  // namespace

void bind_row_functions(py::module_& m) {
  py::class_<TripletStrip>(m, "TripletStrip").def(py::init(&triplet_strip));
  py::class_<PairStrip>(m, "PairStrip").def(py::init(&pair_strip));
  m.def("host_triplets", &run_triplets, py::arg("strip"), py::arg("backwards") = false, Release());
  m.def("host_count_pairs", &run_count_pairs, Release());
  m.def("host_write_pairs", &run_write_pairs);
  py::class_<NearestStrip>(m, "NearestStrip").def(py::init(&nearest_strip));
  m.def("host_nearest", &run_nearest, py::arg("strip"), py::arg("keys"), py::arg("backwards") = false, Release());
#if PML_FAST_WITH_CUDA
  m.def("cuda_triplet_workspace", &cuda::triplet_workspace);
  m.def(
      "cuda_triplets",
      [](const TripletStrip& strip, Address workspace, Address stream) {
        cuda::launch_triplets(strip, at<void>(workspace), at<void>(stream));
      },
      Release());
  m.def(
      "cuda_count_pairs",
      [](const PairStrip& strip, Address counts, Address stream) {
        cuda::launch_count_pairs(strip, at<int64_t>(counts), at<void>(stream));
      },
      Release());
  m.def("cuda_write_pairs", [](const PairStrip& strip, Address places, const std::vector<Address>& lists, Address stream) {
    cuda::launch_write_pairs(strip, at<int64_t>(places), pair_lists(lists), at<void>(stream));
  });
  m.def(
      "cuda_nearest",
      [](const NearestStrip& strip, Address keys, Address stream) {
        cuda::launch_nearest(strip, at<int64_t>(keys), at<void>(stream));
      },
      Release());
#endif
}

}  // namespace pml_fast
