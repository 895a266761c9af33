// The histogram of one anchor's triplets, score of the positive less that of the negative, and what each score moves it by.
//
// Few edges of bins lie among the differences of a row: all others are known of the row's range. Where few positives meet few
// edges, each positive compares runs of negatives with those edges. Else the negatives are sorted: what reaches an edge is then
// a range of them, which a search finds, and work is O(M + P log M) an edge.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "../engine/histogram.h"
#include "edge_comparisons.h"
#include "sorted_negatives.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// One row's scores: the positives are the columns start..end but `own` (-1 for none), all else is a negative.
template <typename T>
struct TripletScores {
  T* s;
  int64_t m, start, end, own;
};

template <typename T>
class TripletHistogram {
 public:
  // Adds the row's triplets to the tallies of the cells.
  void fold(const TripletScores<T>& row, const Cells<T>& cells, Tally* tally) {
    if (!open(row, cells)) return;
    if (!finite_) {
      each(row, [&](int64_t, int64_t, T v) { add(tally[cells.of(v)], 1.0, static_cast<double>(v)); });
    } else if (sorts()) {
      sort(row);
      for (const T own : pos_) fold_sorted(own, cells, tally);
    } else {
      for (const Run& run : runs_)
        for (const T own : pos_) fold_run(row.s + run.first, run, own, cells, tally);
    }
  }

  // The scores become the derivative of the sum of levels[cell] * difference, each cell's level held.
  void slopes(const TripletScores<T>& row, const Cells<T>& cells, const double* levels) {
    if (!open(row, cells)) return std::fill(row.s, row.s + row.m, T(0));
    by_own_.assign(pos_.size(), 0.0);
    if (!finite_)
      plain_slopes(row, cells, levels);
    else if (sorts())
      sorted_slopes(row, cells, levels);
    else
      for (const Run& run : runs_) run_slopes(row.s + run.first, run, cells, levels);
    size_t p = 0;
    for (int64_t j = row.start; j < row.end; ++j) row.s[j] = j == row.own ? T(0) : static_cast<T>(by_own_[p++]);
  }

 private:
  // Negatives that stay in the first-level cache while every positive meets them.
  static constexpr int64_t kRun = 1024;
  // From this many comparisons a negative on, sorting costs less.
  static constexpr int64_t kSortFrom = 160;

  struct Run {
    int64_t first, last;
    T least, most;
    double sum;
    int64_t size() const { return last - first; }
  };

  // ---- the row as it is

  // Whether there is any triplet; then the positives, the runs of negatives and the range of the differences are known.
  bool open(const TripletScores<T>& row, const Cells<T>& cells) {
    pos_.clear();
    runs_.clear();
    for (int64_t j = row.start; j < row.end; ++j)
      if (j != row.own) pos_.push_back(row.s[j]);
    negatives_ = row.m - (row.end - row.start);
    if (pos_.empty() || negatives_ == 0) return false;
    for (const auto& [first, last] : {std::make_pair(int64_t{0}, row.start), std::make_pair(row.end, row.m)})
      for (int64_t j = first; j < last; j += kRun) runs_.push_back(measured(row.s, j, std::min(last, j + kRun)));
    double sum = 0;
    for (const T own : pos_) sum += own;
    whole_ = {0, negatives_, runs_[0].least, runs_[0].most, 0.0};
    for (const Run& run : runs_) {
      whole_.least = std::min(whole_.least, run.least);
      whole_.most = std::max(whole_.most, run.most);
      whole_.sum += run.sum;
    }
    finite_ = std::isfinite(sum + whole_.sum);
    const auto [low, high] = std::minmax_element(pos_.begin(), pos_.end());
    edges_ = finite_ ? cells.of(*high - whole_.least) - cells.of(*low - whole_.most) : 0;
    return true;
  }

  static Run measured(const T* s, int64_t first, int64_t last) {
    T least = s[first], most = s[first];
    double sum = 0;
#pragma omp simd reduction(min : least) reduction(max : most)
    for (int64_t j = first; j < last; ++j) {
      least = s[j] < least ? s[j] : least;
      most = s[j] > most ? s[j] : most;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t j = first; j < last; ++j) sum += static_cast<double>(s[j]);
    return {first, last, least, most, sum};
  }

  bool sorts() const { return static_cast<int64_t>(pos_.size()) * edges_ > kSortFrom; }

  static void add(Tally& to, double count, double sum) {
    to.count += count;
    to.sum += sum;
  }

  // Shares the differences of a positive with a run among the cells from `cell` on: beyond_[k] are those that reach the k-th
  // edge after it.
  void spread(T own, const Run& run, int64_t cell, Tally* tally) const {
    const double size = static_cast<double>(run.size());
    Tally left{size, size * static_cast<double>(own) - run.sum};
    for (const Tally& next : beyond_) {
      // What rounding leaves of an empty cell is nobody's.
      if (left.count != next.count) add(tally[cell], left.count - next.count, left.sum - next.sum);
      left = next;
      ++cell;
    }
    if (left.count != 0) add(tally[cell], left.count, left.sum);
  }

  // ---- by comparison

  void fold_run(const T* s, const Run& run, T own, const Cells<T>& cells, Tally* tally) {
    const int64_t first = cells.of(own - run.most), last = cells.of(own - run.least);
    beyond_.resize(last - first);
    by_edges(first, last,
             [&](int64_t k, auto some) { reach<some.value>(s, run.size(), own, cells.edge(k), beyond_.data() + (k - first)); });
    spread(own, run, first, tally);
  }

  void run_slopes(T* s, const Run& run, const Cells<T>& cells, const double* levels) {
    T c[kRun];
    const int64_t n = run.size();
    std::fill(c, c + n, T(0));
    double base = 0;
    for (size_t p = 0; p < pos_.size(); ++p) {
      const T own = pos_[p];
      const int64_t first = cells.of(own - run.most), last = cells.of(own - run.least);
      base += levels[first];
      by_own_[p] += levels[first] * static_cast<double>(n);
      by_edges(first, last,
               [&](int64_t k, auto some) { by_own_[p] += subtract<some.value>(s, n, own, cells.edge(k), levels + k, c); });
    }
    const T shift = static_cast<T>(base);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) s[j] = c[j] - shift;
  }

  // ---- by sorting the negatives

  void sort(const TripletScores<T>& row) {
    neg_.clear();
    for (const Run& run : runs_)
      for (int64_t j = run.first; j < run.last; ++j) neg_.push(row.s[j], j);
    neg_.sort();
  }

  void fold_sorted(T own, const Cells<T>& cells, Tally* tally) {
    const int64_t first = cells.of(own - whole_.most), last = cells.of(own - whole_.least);
    beyond_.resize(last - first);
    for (int64_t k = first; k < last; ++k) {
      const int64_t count = neg_.reaching(own, *cells.edge(k));
      beyond_[k - first] = {static_cast<double>(count), static_cast<double>(count) * own - neg_.sum(count)};
    }
    spread(own, whole_, first, tally);
  }

  void sorted_slopes(const TripletScores<T>& row, const Cells<T>& cells, const double* levels) {
    sort(row);
    // step_[k]: what the sum of the levels loses from the k-th negative on.
    step_.assign(negatives_ + 1, 0.0);
    double level = 0;
    for (size_t p = 0; p < pos_.size(); ++p) {
      const int64_t first = cells.of(pos_[p] - whole_.most), last = cells.of(pos_[p] - whole_.least);
      level += levels[first];
      by_own_[p] = levels[first] * static_cast<double>(negatives_);
      for (int64_t k = first; k < last; ++k) {
        const double rise = levels[k + 1] - levels[k];
        const int64_t count = neg_.reaching(pos_[p], *cells.edge(k));
        level += rise;
        step_[count] += rise;
        by_own_[p] += rise * static_cast<double>(count);
      }
    }
    for (int64_t k = 0; k < negatives_; ++k) {
      level -= step_[k];
      row.s[neg_.column(k)] = static_cast<T>(-level);
    }
  }

  // ---- of rows that hold what is not finite, triplet by triplet

  template <typename F>
  void each(const TripletScores<T>& row, F&& body) const {
    for (size_t p = 0; p < pos_.size(); ++p)
      for (const Run& run : runs_)
        for (int64_t j = run.first; j < run.last; ++j) body(static_cast<int64_t>(p), j, pos_[p] - row.s[j]);
  }

  void plain_slopes(const TripletScores<T>& row, const Cells<T>& cells, const double* levels) {
    std::vector<T> c(row.m, T(0));
    each(row, [&](int64_t p, int64_t j, T v) {
      const double level = levels[cells.of(v)];
      by_own_[p] += level;
      c[j] -= static_cast<T>(level);
    });
    for (const Run& run : runs_) std::copy(c.begin() + run.first, c.begin() + run.last, row.s + run.first);
  }

  int64_t negatives_ = 0, edges_ = 0;
  bool finite_ = true;
  Run whole_{};
  std::vector<T> pos_;
  std::vector<Run> runs_;
  std::vector<Tally> beyond_;
  std::vector<double> by_own_, step_;
  SortedNegatives<T> neg_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
