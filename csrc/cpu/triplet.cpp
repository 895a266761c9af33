#include "triplet.h"

#include <algorithm>
#include <atomic>

#include "../runtime/parallel.h"
#include "positive_gradients.h"
#include "row_tasks.h"
#include "scores.h"
#include "sorted_positives.h"
#include "symmetric.h"
#include "triplet_ranges.h"
#include "triplet_sweeps.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

// Below this many positives a comparison with each beats a search.
constexpr int64_t kLinear = 12;

template <typename T>
class Engine final : public TripletEngine {
 public:
  Engine(const TripletOptions& options, const PairLayout& layout)
      : o_(options),
        g_(layout),
        scores_(layout),
        positives_(options, layout),
        rule_(static_cast<const T*>(layout.rule)),
        factor_(layout.offset[layout.n]),
        row_sum_(layout.n) {}

  void begin_strip(int64_t i0, int64_t i1) override { positives_.begin_strip(i0, i1); }

  void prepare(void* products, int64_t ld, int64_t i0, int64_t i1, int64_t j0) override {
    for_rows(i0, i1, kRows, g_.threads, [&](int64_t i) {
      T* s = static_cast<T*>(products) + (i - i0) * ld - j0;
      for (int64_t b0 = g_.start[i]; b0 < g_.end[i]; b0 += kBlock)
        scores_.from_products(s, i, b0, std::min(g_.end[i], b0 + kBlock));
      positives_.sort(i, s);
    });
  }

  bool fold(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, bool gradients,
            const void* weights) override {
    const T* w = static_cast<const T*>(weights);
    std::atomic<bool> live{false};
    for_rows(i0, i1, 8, g_.threads, [&](int64_t i) {
      T* s = static_cast<T*>(tile) + (i - i0) * ld - j0;
      if (fold_row(s, i, j0, j1, gradients, w == nullptr ? T(1) : w[i])) live.store(true, std::memory_order_relaxed);
    });
    return live;
  }

  void symmetrise(void* tile, int64_t n) const override { add_transpose(static_cast<T*>(tile), n, g_.threads); }

  void rows(double* out) const override {
    for (int64_t i = 0; i < g_.n; ++i) {
      out[i] = positives_.sums(i).loss;
      out[g_.n + i] = static_cast<double>(positives_.sums(i).count);
    }
  }

  void finish_strip(int64_t i0, int64_t i1, const void* weights) override {
    const T* w = static_cast<const T*>(weights);
    for_rows(i0, i1, kRows, g_.threads, [&](int64_t i) { place_slopes(i, w == nullptr ? T(1) : w[i]); });
  }

  void finish_gradients(void* dx_out, void* dy_out) override {
    T* dx = static_cast<T*>(dx_out);
    T* dy = static_cast<T*>(dy_out);
    const PositiveGradients pairs(g_, scores_, [&](int64_t i, int64_t k) { return factor_[g_.offset[i] + k]; });
    if (dx != nullptr)
      for_rows(0, g_.n, kRows, g_.threads, [&](int64_t i) {
        add_own(g_.distance, row_sum_[i], scores_.row(i), g_.d, dx + i * g_.d);
        pairs.add_row(i, dx + i * g_.d);
      });
    if (dy != nullptr) for_rows(0, g_.m, kRows, g_.threads, [&](int64_t j) { pairs.add_column(j, dy + j * g_.d); });
  }

 private:
  // Rows of a task, where a row is little work.
  static constexpr int64_t kRows = 32;

  // One row and a tile's columns.
  struct Meeting {
    SortedAnchor<T> anchor;
    int64_t i;
    bool gradients;
    T weight;
    TripletRanges<T>& ranges;
    T sum = 0;  // of a distance's coefficients
  };

  // Whether negatives meet a range of the sorted positives, found by search.
  bool searches(int64_t count) const { return !o_.smooth && (o_.select != Select::kEvery || count > kLinear); }

  bool fold_row(T* s, int64_t i, int64_t j0, int64_t j1, bool gradients, T w) {
    thread_local TripletRanges<T> ranges;
    Meeting row{positives_.anchor(i), i, gradients, w, ranges};
    const bool in_ranges = row.anchor.count > 0 && searches(row.anchor.count);
    if (in_ranges) ranges.open(row.anchor, o_);
    bool any = false;
    for (int64_t b0 = j0; b0 < j1; b0 += kBlock) {
      const int64_t b1 = std::min(j1, b0 + kBlock);
      // The row's own class is left out: prepare() may have turned its products into scores already.
      const int64_t hole = std::clamp(g_.start[i], b0, b1), after = std::clamp(g_.end[i], hole, b1);
      scores_.from_products(s, i, b0, hole);
      scores_.from_products(s, i, after, b1);
      any |= rule_ == nullptr ? fold_all(s, row, b0, b1) : fold_ruled(s, row, b0, b1);
    }
    if (in_ranges) ranges.close(row.anchor);
    row_sum_[i] += row.sum;
    return any;
  }

  // Without a rule the negatives are all but one run of columns.
  bool fold_all(T* s, Meeting& row, int64_t b0, int64_t b1) {
    const int64_t hole = std::clamp(g_.start[row.i], b0, b1), after = std::clamp(g_.end[row.i], hole, b1);
    bool any = fold_run(s + b0, row, hole - b0);
    if (row.gradients) std::fill(s + hole, s + after, T(0));
    any |= fold_run(s + after, row, b1 - after);
    return any;
  }

  bool fold_run(T* s, Meeting& row, int64_t n) {
    if (n == 0) return false;
    T v[kBlock], c[kBlock];
    const T flip = o_.sign > 0 ? T(-1) : T(1);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) v[j] = flip * s[j];
    meet(row, v, n, c);
    return row.gradients && coefficients(s, n, c, row.weight, row.sum);
  }

  bool fold_ruled(T* s, Meeting& row, int64_t b0, int64_t b1) {
    T v[kBlock], c[kBlock], kept[kBlock];
    int32_t at[kBlock];
    const int64_t n = gather(s, row.i, b0, b1, v, at);
    meet(row, v, n, c);
    if (!row.gradients) return false;
    for (int64_t k = 0; k < n; ++k) kept[k] = s[b0 + at[k]];
    const bool any = coefficients(kept, n, c, row.weight, row.sum);
    std::fill(s + b0, s + b1, T(0));
    for (int64_t k = 0; k < n; ++k) s[b0 + at[k]] = kept[k];
    return any;
  }

  // The negatives of a run that its rule leaves, in closeness order, and where they stand.
  int64_t gather(const T* s, int64_t i, int64_t j0, int64_t j1, T* v, int32_t* at) const {
    int64_t n = 0;
    for (int64_t j = j0; j < j1; ++j) {
      if (j >= g_.start[i] && j < g_.end[i]) continue;
      if (s[j] < rule_[2 * g_.n + i] || s[j] > rule_[3 * g_.n + i]) continue;
      v[n] = positives_.toward(s[j]);
      at[n++] = static_cast<int32_t>(j - j0);
    }
    return n;
  }

  // c = d(sum of the counted losses)/dz of each negative.
  void meet(Meeting& row, const T* v, int64_t n, T* c) {
    if (row.anchor.count == 0)
      std::fill(c, c + n, T(0));
    else if (o_.smooth)
      sweep_smooth(row.anchor, o_, v, n, row.gradients, c);
    else if (searches(row.anchor.count))
      row.ranges.meet(row.anchor, o_, v, n, c);
    else
      sweep_hinges(row.anchor, o_, v, n, c);
  }

  // Scores of negatives become what their difference (or inner product) is multiplied by in the gradient.
  bool coefficients(T* s, int64_t n, const T* c, T w, T& sum) const {
    const T scale = o_.sign > 0 ? -w : w;
    T total = 0;
    int any = 0;
    if (g_.distance == Distance::kDot) {
#pragma omp simd reduction(| : any)
      for (int64_t j = 0; j < n; ++j) {
        s[j] = c[j] == T(0) ? T(0) : c[j] * scale;
        any |= s[j] != T(0) ? 1 : 0;
      }
      return any != 0;
    }
    const bool root = g_.distance == Distance::kL2;
#pragma omp simd reduction(+ : total) reduction(| : any)
    for (int64_t j = 0; j < n; ++j) {
      const T slope = c[j] == T(0) ? T(0) : c[j] * scale;
      const T over = s[j] == T(0) ? T(0) : slope / s[j];
      const T value = root ? over : T(2) * slope;
      any |= value != T(0) ? 1 : 0;
      total += value;
      s[j] = -value;
    }
    sum += total;
    return any != 0;
  }

  // dL/dz of a row's sorted positives, back at their columns, over what their difference (or inner product) is multiplied by.
  void place_slopes(int64_t i, T w) {
    const SortedAnchor<T> anchor = positives_.anchor(i);
    const bool ranges = searches(anchor.count);
    double running = 0;
    for (int64_t k = 0; k < anchor.count; ++k) {
      const double own = anchor.weight[k];
      running = ranges ? running + own : own;
      const int64_t j = positives_.column(i, k);
      const T z = anchor.z[k], s = o_.sign > 0 ? -z : z;
      T value = static_cast<T>(running) * w * (o_.sign > 0 ? T(-1) : T(1));
      factor_[g_.offset[i] + j - g_.start[i]] = over_difference(g_.distance, value, s);
    }
  }

  TripletOptions o_;
  PairLayout g_;
  Scores<T> scores_;
  SortedPositives<T> positives_;
  const T* rule_;
  std::vector<T> factor_, row_sum_;
};

}  // namespace

std::unique_ptr<TripletEngine> make_triplet_engine(const TripletOptions& options, const PairLayout& layout, bool is_double) {
  if (is_double) return std::make_unique<Engine<double>>(options, layout);
  return std::make_unique<Engine<float>>(options, layout);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
