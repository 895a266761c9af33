// One row's triplets in a histogram: how the engine counts them, and what each score moves.
#pragma once

#include <cstdint>
#include <vector>

#include "../engine/histogram.h"
#include "histogram.h"
#include "triplet_histogram.h"

namespace pml_fast {
namespace PML_FAST_ISA {

template <typename T>
class HistogramTriplets {
 public:
  // A difference may lie anywhere.
  struct Range {
    void add(const Range&) {}
  };
  using Work = TripletHistogram<T>;

  HistogramTriplets(const HistogramOptions& options, const PairLayout& layout)
      : g_(layout),
        bins_(options.low, options.delta, options.count),
        cells_(bins_),
        moving_(cells_.closed(bins_)),
        levels_(tallies()) {}

  int64_t tallies() const { return bins_.count + 2; }
  void begin(Work&) const {}
  void end(Work&, Tally*) const {}
  void fold(T* s, int64_t i, Work& work, Tally* part, Range&) const { work.fold(row(s, i), cells_, part); }
  void sums(const Tally* total, double* out) const { sums_of_cells(bins_, total, out); }
  bool holds(const Range&) const { return true; }

  // Outside of the bins a value still counts, but its part no longer moves.
  void set_slopes(const double* slopes) {
    const double *by_part = slopes, *by_value = slopes + bins_.count;
    levels_.front() = by_value[0];
    levels_.back() = by_value[bins_.count - 1];
    for (int64_t b = 0; b < bins_.count; ++b) levels_[b + 1] = by_part[b] / static_cast<double>(bins_.delta) + by_value[b];
  }

  void slopes(T* s, int64_t i, int64_t, Work& work) const { work.slopes(row(s, i), moving_, levels_.data()); }

 private:
  TripletScores<T> row(T* s, int64_t i) const { return {s, g_.m, g_.start[i], g_.end[i], g_.own_column(i)}; }

  PairLayout g_;
  Bins<T> bins_;
  // A difference at the end of the last bin is beyond it, but still moves.
  Cells<T> cells_, moving_;
  std::vector<double> levels_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
