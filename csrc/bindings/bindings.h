#pragma once

#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/pairwise.h"
#include "cpu/triplet.h"

namespace pml_fast {

// Tensors cross as addresses.
using Address = uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

inline Distance distance_named(const std::string& name) {
  if (name == "dot") return Distance::kDot;
  if (name == "l2") return Distance::kL2;
  if (name == "l2_squared") return Distance::kL2Squared;
  throw std::invalid_argument("distance must be dot, l2 or l2_squared, got '" + name + "'");
}

inline Select select_named(const std::string& name) {
  if (name == "every") return Select::kEvery;
  if (name == "all") return Select::kAll;
  if (name == "hard") return Select::kHard;
  if (name == "semihard") return Select::kSemihard;
  if (name == "easy") return Select::kEasy;
  throw std::invalid_argument("select must be every, all, hard, semihard or easy, got '" + name + "'");
}

// A bound that no loss is beyond is not tested: a comparison with NaN never holds.
inline std::vector<Limits> open_intervals(const std::vector<std::pair<double, double>>& limits) {
  constexpr double kNever = std::numeric_limits<double>::quiet_NaN(), kInfinity = std::numeric_limits<double>::infinity();
  std::vector<Limits> intervals;
  for (const auto& [low, high] : limits)
    intervals.push_back({low == -kInfinity ? kNever : low, high == kInfinity ? kNever : high});
  return intervals;
}

// Each engine binds its own functions; addresses and sizes are checked by the Python glue that calls them.
void bind_pairwise(pybind11::module_& m);
void bind_triplet(pybind11::module_& m);
void bind_indexed(pybind11::module_& m);
void bind_small(pybind11::module_& m);
void bind_row_functions(pybind11::module_& m);
void bind_strip(pybind11::module_& m);
void bind_score_strip(pybind11::module_& m);
void bind_knn(pybind11::module_& m);
void bind_classes(pybind11::module_& m);
void bind_histogram(pybind11::module_& m);
void bind_label_sets(pybind11::module_& m);

}  // namespace pml_fast
