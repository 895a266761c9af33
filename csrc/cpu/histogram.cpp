#include "histogram.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "../engine/histogram.h"
#include "../runtime/parallel.h"
#include "scores.h"
#include "triplet_histogram.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

// By how much rounding may carry a score out of the bins.
constexpr double kSlack = 1e-3;

// Rows of a strip as tasks. A task has tallies of its own, which are added up in the order of the rows.
struct Tasks {
  int64_t rows, count;

  Tasks(int64_t size, int64_t tallies) {
    constexpr int64_t kRows = 8, kMost = 1 << 18;
    rows = std::max(kRows, (size * tallies + kMost - 1) / kMost);
    count = (size + rows - 1) / rows;
  }
};

// What pairs and triplets have in common; `Rows` are the functions of one row.
template <typename T, typename Rows>
class Engine final : public HistogramEngine {
 public:
  Engine(const HistogramOptions& options, const PairLayout& layout)
      : g_(layout), scores_(layout), rows_(options, layout), total_(rows_.tallies()) {}

  void fold(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0) override {
    const int64_t size = rows_.tallies();
    const Tasks tasks(i1 - i0, size);
    std::vector<Tally> parts(tasks.count * size);
    std::vector<typename Rows::Range> ranges(tasks.count);
    parallel_for(tasks.count, threads(i1 - i0), [&](int64_t task) {
      thread_local typename Rows::Work work;
      Tally* part = parts.data() + task * size;
      rows_.begin(work);
      for (int64_t i = i0 + task * tasks.rows; i < std::min(i1, i0 + (task + 1) * tasks.rows); ++i) {
        T* s = static_cast<T*>(tile) + (i - i0) * ld - j0;
        to_scores(s, i, j0);
        rows_.fold(s, i, work, part, ranges[task]);
      }
      rows_.end(work, part);
    });
    for (int64_t task = 0; task < tasks.count; ++task) {
      for (int64_t k = 0; k < size; ++k) {
        total_[k].count += parts[task * size + k].count;
        total_[k].sum += parts[task * size + k].sum;
      }
      range_.add(ranges[task]);
    }
  }

  bool sums(double* out) const override {
    rows_.sums(total_.data(), out);
    return rows_.holds(range_);
  }

  void set_slopes(const double* slopes) override { rows_.set_slopes(slopes); }

  bool coefficients(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, bool scored, void* own) const override {
    std::atomic<bool> live{false};
    const Tasks tasks(i1 - i0, 1);
    parallel_for(tasks.count, threads(i1 - i0), [&](int64_t task) {
      thread_local typename Rows::Work work;
      thread_local std::vector<T> scores;
      bool any = false;
      for (int64_t i = i0 + task * tasks.rows; i < std::min(i1, i0 + (task + 1) * tasks.rows); ++i) {
        T* s = static_cast<T*>(tile) + (i - i0) * ld - j0;
        if (!scored) to_scores(s, i, j0);
        const bool lengths = g_.distance == Distance::kL2;
        if (lengths) scores.assign(s + j0, s + g_.m);
        rows_.slopes(s, i, j0, work);
        any |= weigh(s + j0, lengths ? scores.data() : nullptr, g_.m - j0, static_cast<T*>(own)[i]);
      }
      if (any) live = true;
    });
    return live;
  }

 private:
  int threads(int64_t rows) const { return rows * g_.m < (1 << 14) ? 1 : g_.threads; }

  void to_scores(T* s, int64_t i, int64_t j0) const {
    for (int64_t j = j0; j < g_.m; j += kBlock) scores_.from_products(s, i, j, std::min(g_.m, j + kBlock));
  }

  // dL/dscore becomes what multiplies the other side's row in the gradient; `own` is what multiplies the row itself.
  bool weigh(T* s, const T* score, int64_t n, T& own) const {
    int any = 0;
    T sum = 0;
    if (g_.distance == Distance::kDot) {
#pragma omp simd reduction(| : any)
      for (int64_t j = 0; j < n; ++j) any |= s[j] != T(0) ? 1 : 0;
    } else if (score == nullptr) {
#pragma omp simd reduction(+ : sum) reduction(| : any)
      for (int64_t j = 0; j < n; ++j) {
        sum += T(2) * s[j];
        s[j] *= T(-2);
        any |= s[j] != T(0) ? 1 : 0;
      }
    } else {
#pragma omp simd reduction(+ : sum) reduction(| : any)
      for (int64_t j = 0; j < n; ++j) {
        // Two equal rows pull nowhere.
        const T factor = score[j] == T(0) ? T(0) : s[j] / score[j];
        sum += factor;
        s[j] = -factor;
        any |= factor != T(0) ? 1 : 0;
      }
    }
    own = sum;
    return any != 0;
  }

  PairLayout g_;
  Scores<T> scores_;
  Rows rows_;
  std::vector<Tally> total_;
  typename Rows::Range range_;
};

// ---- pairs
// ---------------------------------------------------------------------------------------------------------------------

// Positive and negative pairs in tables of their own, those of a batch with itself each once: the first of the two is its row.
template <typename T>
class PairRows {
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

  PairRows(const HistogramOptions& options, const PairLayout& layout)
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

// ---- triplets
// ------------------------------------------------------------------------------------------------------------------

template <typename T>
class TripletRows {
 public:
  // A difference may lie anywhere.
  struct Range {
    void add(const Range&) {}
  };
  using Work = TripletHistogram<T>;

  TripletRows(const HistogramOptions& options, const PairLayout& layout)
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

template <typename T>
std::unique_ptr<HistogramEngine> make(const HistogramOptions& options, const PairLayout& layout) {
  if (options.triplets) return std::make_unique<Engine<T, TripletRows<T>>>(options, layout);
  return std::make_unique<Engine<T, PairRows<T>>>(options, layout);
}

}  // namespace

std::unique_ptr<HistogramEngine> make_histogram_engine(const HistogramOptions& options, const PairLayout& layout,
                                                       bool is_double) {
  return is_double ? make<double>(options, layout) : make<float>(options, layout);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
