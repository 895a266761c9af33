#include "histogram.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "../engine/histogram.h"
#include "../runtime/parallel.h"
#include "histogram_pairs.h"
#include "histogram_triplets.h"
#include "scores.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

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

template <typename T>
std::unique_ptr<HistogramEngine> make(const HistogramOptions& options, const PairLayout& layout) {
  if (options.triplets) return std::make_unique<Engine<T, HistogramTriplets<T>>>(options, layout);
  return std::make_unique<Engine<T, HistogramPairs<T>>>(options, layout);
}

}  // namespace

std::unique_ptr<HistogramEngine> make_histogram_engine(const HistogramOptions& options, const PairLayout& layout,
                                                       bool is_double) {
  return is_double ? make<double>(options, layout) : make<float>(options, layout);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
