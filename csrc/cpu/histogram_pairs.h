// One row's pairs in a histogram: how the engine counts them, and what each score moves.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../engine/histogram.h"
#include "histogram.h"
#include "scores.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// Positive and negative pairs in tables of their own, those of a batch with itself each once: the first of the two is its row.
template <typename T>
class HistogramPairs {
 public:
  // The least and the largest score of a pair.
  struct Range {
    T least = std::numeric_limits<T>::infinity(), most = -std::numeric_limits<T>::infinity();

    void add(const Range& other) {
      least = std::min(least, other.least);
      most = std::max(most, other.most);
    }
  };

  struct Work {
    std::vector<Tally> copies;
  };

  HistogramPairs(const HistogramOptions& options, const PairLayout& layout)
      : g_(layout), bins_(options.low, options.delta, options.count), open_(layout.n), slopes_(2 * options.count) {
    // Only pairs that belong to some triplet count: an anchor has a positive and a negative.
    for (int64_t i = 0; i < g_.n; ++i) {
      const int64_t own = g_.own_column(i);
      const int64_t positives = g_.end[i] - g_.start[i] - (own >= g_.start[i] && own < g_.end[i] ? 1 : 0);
      open_[i] = positives > 0 && g_.end[i] - g_.start[i] < g_.m;
    }
  }

  int64_t tallies() const { return 2 * bins_.count; }
  void begin(Work& work) const { work.copies.assign(kCopies * tallies(), Tally{}); }

  void end(const Work& work, Tally* part) const {
    for (int64_t copy = 0; copy < kCopies; ++copy)
      for (int64_t k = 0; k < tallies(); ++k) {
        part[k].count += work.copies[copy * tallies() + k].count;
        part[k].sum += work.copies[copy * tallies() + k].sum;
      }
  }

  void fold(const T* s, int64_t i, Work& work, Tally*, Range& range) const {
    each_run(i, [&](int64_t first, int64_t last, int64_t side) {
      for (int64_t j0 = first; j0 < last; j0 += kBlock) {
        const int64_t j1 = std::min(last, j0 + kBlock);
        if (open_[i] != 0) {
          fold_run(s + j0, j1 - j0, side, work, range);
          continue;
        }
        T some[kBlock];
        int64_t count = 0;
        for (int64_t j = j0; j < j1; ++j)
          if (open_[j] != 0) some[count++] = s[j];
        fold_run(some, count, side, work, range);
      }
    });
  }

  void sums(const Tally* total, double* out) const {
    for (int64_t side = 0; side < 2; ++side)
      for (int64_t b = 0; b < bins_.count; ++b) {
        out[2 * side * bins_.count + b] = total[side * bins_.count + b].count;
        out[(2 * side + 1) * bins_.count + b] = total[side * bins_.count + b].sum;
      }
  }

  bool holds(const Range& range) const {
    return !(range.least < T(bins_.low - kSlack)) && !(range.most > T(bins_.high + kSlack));
  }

  void set_slopes(const double* slopes) {
    for (size_t k = 0; k < slopes_.size(); ++k) slopes_[k] = static_cast<T>(slopes[k] / static_cast<double>(bins_.delta));
  }

  void slopes(T* s, int64_t i, int64_t j0, Work&) const {
    int64_t done = j0;
    each_run(i, [&](int64_t first, int64_t last, int64_t side) {
      std::fill(s + done, s + first, T(0));
      bins_.look_up(s + first, last - first, slopes_.data() + side * bins_.count);
      if (open_[i] == 0)
        for (int64_t j = first; j < last; ++j) s[j] = open_[j] != 0 ? s[j] : T(0);
      done = last;
    });
    std::fill(s + done, s + g_.m, T(0));
  }

 private:
  // By how much rounding may carry a score out of the bins.
  static constexpr double kSlack = 1e-3;

  // Pairs of one row often share a bin: in turn they write to tables of their own, and none waits for the last.
  static constexpr int64_t kCopies = 4;

  // The runs of columns whose pairs with row i may count, in their order; side 0 is that of the positives.
  template <typename F>
  void each_run(int64_t i, F&& body) const {
    const int64_t start = g_.start[i], end = g_.end[i];
    if (g_.exclude_self) {
      // Rows of one class are open together.
      if (open_[i] != 0) body(i + 1, end, 0);
      body(end, g_.m, 1);
    } else if (open_[i] != 0) {
      body(0, start, 1);
      body(start, end, 0);
      body(end, g_.m, 1);
    }
  }

  void fold_run(const T* s, int64_t n, int64_t side, Work& work, Range& range) const {
    int32_t bin[kBlock];
    T part[kBlock], least = range.least, most = range.most;
    bins_.place(s, n, bin, part);
#pragma omp simd reduction(min : least) reduction(max : most)
    for (int64_t j = 0; j < n; ++j) {
      least = s[j] < least ? s[j] : least;
      most = s[j] > most ? s[j] : most;
    }
    range.least = least, range.most = most;
    Tally* table = work.copies.data() + side * bins_.count;
    const int64_t size = tallies();
    int64_t j = 0;
    for (; j + kCopies <= n; j += kCopies)
      for (int64_t copy = 0; copy < kCopies; ++copy) add(table[copy * size + bin[j + copy]], part[j + copy]);
    for (; j < n; ++j) add(table[bin[j]], part[j]);
  }

  static void add(Tally& to, T part) {
    to.count += 1;
    to.sum += static_cast<double>(part);
  }

  PairLayout g_;
  Bins<T> bins_;
  std::vector<uint8_t> open_;
  std::vector<T> slopes_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
