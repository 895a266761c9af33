#include "triplet.h"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "../engine/triplet_rows.h"
#include "../runtime/parallel.h"
#include "scores.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

// Below this many positives a comparison with each beats a search.
constexpr int64_t kLinear = 48;

template <typename T>
class Engine final : public TripletEngine {
 public:
  Engine(const TripletOptions& options, const PairLayout& layout)
      : o_(options), g_(layout), scores_(layout), rule_(static_cast<const T*>(layout.rule)) {
    sums_.assign(g_.n, AnchorSums{});
    row_sum_.assign(g_.n, T(0));
    factor_.assign(g_.offset[g_.n], T(0));
  }

  // Tables of the sorted positives live for one strip of rows.
  void begin_strip(int64_t i0, int64_t i1) override {
    strip_ = i0;
    begin_.assign(i1 - i0 + 1, 0);
    steps_.resize(i1 - i0);
    for (int64_t i = i0; i < i1; ++i) {
      int steps = 0;
      while ((int64_t{1} << steps) < g_.end[i] - g_.start[i] + 1) ++steps;
      steps_[i - i0] = steps - 1;
      begin_[i - i0 + 1] = begin_[i - i0] + (int64_t{1} << steps);
    }
    const int64_t size = begin_[i1 - i0];
    z_.resize(size);
    column_.resize(size);
    suffix_.resize(size);
    weight_.assign(size, 0.0);
    count_.assign(i1 - i0, 0);
  }

  void prepare(void* products, int64_t ld, int64_t i0, int64_t i1, int64_t j0) override {
    parallel_for((i1 - i0 + 31) / 32, g_.threads, [&](int64_t task) {
      for (int64_t i = i0 + task * 32; i < std::min(i1, i0 + (task + 1) * 32); ++i) {
        T* s = static_cast<T*>(products) + (i - i0) * ld - j0;
        for (int64_t b0 = g_.start[i]; b0 < g_.end[i]; b0 += kBlock)
          scores_.from_products(s, i, b0, std::min(g_.end[i], b0 + kBlock));
        sort_positives(i, s);
      }
    });
  }

  bool fold(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, bool gradients,
            const void* weights) override {
    const T* w = static_cast<const T*>(weights);
    std::atomic<bool> live{false};
    constexpr int64_t kRows = 8;
    parallel_for((i1 - i0 + kRows - 1) / kRows, g_.threads, [&](int64_t task) {
      bool any = false;
      for (int64_t i = i0 + task * kRows; i < std::min(i1, i0 + (task + 1) * kRows); ++i)
        any |= fold_row(static_cast<T*>(tile) + (i - i0) * ld - j0, i, j0, j1, gradients, w == nullptr ? T(1) : w[i]);
      if (any) live = true;
    });
    return live;
  }

  void rows(double* out) const override {
    for (int64_t i = 0; i < g_.n; ++i) {
      out[i] = sums_[i].loss;
      out[g_.n + i] = static_cast<double>(sums_[i].count);
    }
  }

  // dL/dz of the strip's sorted positives, back at their columns, over what their difference (or inner product) is multiplied
  // by.
  void finish_strip(int64_t i0, int64_t i1, const void* weights) override {
    const T* w = static_cast<const T*>(weights);
    parallel_for((i1 - i0 + 31) / 32, g_.threads, [&](int64_t task) {
      for (int64_t i = i0 + task * 32; i < std::min(i1, i0 + (task + 1) * 32); ++i) place_slopes(i, w == nullptr ? T(1) : w[i]);
    });
  }

  void finish_gradients(void* dx_out, void* dy_out) override {
    T* dx = static_cast<T*>(dx_out);
    T* dy = static_cast<T*>(dy_out);
    if (dx != nullptr)
      over(g_.n, [&](int64_t i) {
        add_own(g_.distance, row_sum_[i], scores_.row(i), g_.d, dx + i * g_.d);
        for (int64_t j = g_.start[i]; j < g_.end[i]; ++j) {
          T factor = factor_[g_.offset[i] + j - g_.start[i]];
          if (g_.itself) factor += factor_[g_.offset[j] + i - g_.start[j]];
          add_pair(g_.distance, factor, scores_.row(i), scores_.column(j), g_.d, dx + i * g_.d);
        }
      });
    if (dy != nullptr)
      over(g_.m, [&](int64_t j) {
        for (int64_t i = g_.col_start[j]; i < g_.col_end[j]; ++i)
          add_pair(g_.distance, factor_[g_.offset[i] + j - g_.start[i]], scores_.column(j), scores_.row(i), g_.d,
                   dy + j * g_.d);
      });
  }

 private:
  template <typename F>
  void over(int64_t count, F&& body) const {
    constexpr int64_t kRows = 32;
    parallel_for((count + kRows - 1) / kRows, g_.threads, [&](int64_t task) {
      for (int64_t i = task * kRows; i < std::min(count, (task + 1) * kRows); ++i) body(i);
    });
  }

  int64_t base(int64_t i) const { return begin_[i - strip_]; }

  T toward(T s) const { return o_.sign > 0 ? -s : s; }

  // ---- positives
  // ---------------------------------------------------------------------------------------------------------------

  void sort_positives(int64_t i, const T* scores) {
    const int64_t first = base(i);
    std::vector<std::pair<T, int64_t>> pos;
    T nan = 0;
    for (int64_t j = g_.start[i]; j < g_.end[i]; ++j) {
      if (j == g_.own_column(i)) continue;
      const T s = scores[j];
      if (rule_ != nullptr && (s < rule_[i] || s > rule_[g_.n + i])) continue;
      nan += s - s;
      pos.emplace_back(toward(s), j);
    }
    // A NaN cannot be sorted: it is remembered, and the row's sum made NaN.
    poisoned(i, nan);
    std::sort(pos.begin(), pos.end(),
              [](const auto& a, const auto& b) { return a.first < b.first || (a.first == b.first && a.second < b.second); });
    count_[i - strip_] = static_cast<int64_t>(pos.size());
    double suffix = 0;
    for (int64_t k = base(i + 1) - first - 1; k >= 0; --k) {
      const bool there = k < count_[i - strip_];
      z_[first + k] = there ? pos[k].first : std::numeric_limits<T>::infinity();
      column_[first + k] = there ? pos[k].second : -1;
      if (there) suffix += static_cast<double>(pos[k].first);
      suffix_[first + k] = suffix;
    }
  }

  void poisoned(int64_t i, T nan) {
    if (nan != nan) sums_[i].loss = std::numeric_limits<double>::quiet_NaN();
  }

  // ---- negatives
  // ---------------------------------------------------------------------------------------------------------------

  bool fold_row(T* s, int64_t i, int64_t j0, int64_t j1, bool gradients, T w) {
    bool any = false;
    T sum = 0;
    for (int64_t b0 = j0; b0 < j1; b0 += kBlock) {
      const int64_t b1 = std::min(j1, b0 + kBlock);
      scores_.from_products(s, i, b0, b1);
      T v[kBlock], c[kBlock];
      int32_t at[kBlock];
      const int64_t n = gather(s, i, b0, b1, v, at);
      if (count_[i - strip_] > 0 && n > 0)
        fold_negatives(i, v, n, gradients, c);
      else
        std::fill(c, c + n, T(0));
      if (gradients) any |= scatter(s, b0, b1, at, n, c, w, sum);
    }
    row_sum_[i] += sum;
    return any;
  }

  // The negatives of a run, in closeness order, and where they stand.
  int64_t gather(const T* s, int64_t i, int64_t j0, int64_t j1, T* v, int32_t* at) const {
    int64_t n = 0;
    const auto take = [&](int64_t first, int64_t last) {
      if (rule_ == nullptr) {
        for (int64_t j = first; j < last; ++j, ++n) {
          v[n] = toward(s[j]);
          at[n] = static_cast<int32_t>(j - j0);
        }
        return;
      }
      for (int64_t j = first; j < last; ++j) {
        if (s[j] < rule_[2 * g_.n + i] || s[j] > rule_[3 * g_.n + i]) continue;
        v[n] = toward(s[j]);
        at[n++] = static_cast<int32_t>(j - j0);
      }
    };
    take(j0, std::min(j1, g_.start[i]));
    take(std::max(j0, g_.end[i]), j1);
    return n;
  }

  // c = d(sum of the counted losses)/dz of each negative.
  void fold_negatives(int64_t i, const T* v, int64_t n, bool gradients, T* c) {
    if (o_.smooth)
      smooth_run(i, v, n, gradients, c);
    else if (o_.select == Select::kEvery && count_[i - strip_] <= kLinear)
      linear_run(i, v, n, c);
    else
      search_run(i, v, n, c);
  }

  void linear_run(int64_t i, const T* v, int64_t n, T* c) {
    const T* z = z_.data() + base(i);
    const T margin = T(o_.margin);
    T loss[kBlock];
    for (int64_t j = 0; j < n; ++j) loss[j] = c[j] = T(0);
    int64_t total = 0;
    for (int64_t k = 0; k < count_[i - strip_]; ++k) {
      const T own = z[k];
      int active = 0;
#pragma omp simd reduction(+ : active)
      for (int64_t j = 0; j < n; ++j) {
        const T violation = (own - v[j]) + margin;
        const bool over = violation > T(0);
        // Written so that a NaN is added, and seen.
        loss[j] += violation <= T(0) ? T(0) : violation;
        c[j] -= over ? T(1) : T(0);
        active += over ? 1 : 0;
      }
      weight_[base(i) + k] += active;
      total += active;
    }
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += static_cast<double>(loss[j]);
    sums_[i].loss += sum;
    sums_[i].count += o_.positive_only ? total : count_[i - strip_] * n;
  }

  void search_run(int64_t i, const T* v, int64_t n, T* c) {
    const T* z = z_.data() + base(i);
    const double* suffix = suffix_.data() + base(i);
    double* weight = weight_.data() + base(i);
    const int steps = steps_[i - strip_];
    const int32_t p = static_cast<int32_t>(count_[i - strip_]);
    const T margin = T(o_.margin), selected = T(o_.select_margin);
    int32_t active[kBlock], low[kBlock], high[kBlock];
    first_true(z, steps, v, n, [=](T a, T b) { return (a - b) + margin > T(0); }, active);
    std::fill(low, low + n, 0);
    std::fill(high, high + n, p);
    const auto within = [=](T a, T b) { return b - a <= selected; };
    const auto wrong = [](T a, T b) { return b - a <= T(0); };
    if (o_.select == Select::kAll) first_true(z, steps, v, n, within, low);
    if (o_.select == Select::kHard) first_true(z, steps, v, n, [=](T a, T b) { return within(a, b) && wrong(a, b); }, low);
    if (o_.select == Select::kSemihard) {
      first_true(z, steps, v, n, within, low);
      first_true(z, steps, v, n, wrong, high);
    }
    if (o_.select == Select::kEasy) first_true(z, steps, v, n, within, high);
    double loss = 0;
    int64_t total = 0;
    for (int64_t j = 0; j < n; ++j) {
      if (v[j] != v[j]) loss += static_cast<double>(v[j]);
      const int32_t h = std::min(high[j], p), l = std::min(std::max(active[j], low[j]), h);
      const int32_t count = h - l;
      loss += (suffix[l] - suffix[h]) + count * (o_.margin - static_cast<double>(v[j]));
      weight[l] += 1;
      weight[h] -= 1;
      c[j] = static_cast<T>(-count);
      total += o_.positive_only ? count : std::max(h - low[j], 0);
    }
    sums_[i].loss += loss;
    sums_[i].count += total;
  }

  bool is_selected(T gap) const {
    switch (o_.select) {
      case Select::kAll:
        return gap <= T(o_.select_margin);
      case Select::kHard:
        return gap <= T(o_.select_margin) && gap <= T(0);
      case Select::kSemihard:
        return gap <= T(o_.select_margin) && gap > T(0);
      case Select::kEasy:
        return gap > T(o_.select_margin);
      default:
        return true;
    }
  }

  void smooth_run(int64_t i, const T* v, int64_t n, bool gradients, T* c) {
    const T* z = z_.data() + base(i);
    const T margin = T(o_.margin);
    const bool filter = o_.select != Select::kEvery;
    T loss[kBlock];
    for (int64_t j = 0; j < n; ++j) loss[j] = c[j] = T(0);
    int64_t total = 0;
    for (int64_t k = 0; k < count_[i - strip_]; ++k) {
      T keep[kBlock];
      for (int64_t j = 0; j < n; ++j) keep[j] = !filter || is_selected(v[j] - z[k]) ? T(1) : T(0);
      const T own = z[k];
      T slope = 0;
      int counted = 0;
#pragma omp simd reduction(+ : slope, counted)
      for (int64_t j = 0; j < n; ++j) {
        const T x = (own - v[j]) + margin;
        const T e = exp_of(-std::abs(x));
        const T value = relu(x) + log1p_of(e);
        const T sigma = (x < T(0) ? e : T(1)) / (T(1) + e);
        const bool in = keep[j] > T(0);
        loss[j] += in ? value : T(0);
        c[j] -= in ? sigma : T(0);
        slope += in ? sigma : T(0);
        counted += in & !(value <= T(0)) ? 1 : 0;
      }
      if (gradients) weight_[base(i) + k] += static_cast<double>(slope);
      if (o_.positive_only)
        total += counted;
      else
        for (int64_t j = 0; j < n; ++j) total += keep[j] > T(0) ? 1 : 0;
    }
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += static_cast<double>(loss[j]);
    sums_[i].loss += sum;
    sums_[i].count += total;
  }

  // The row's coefficients go back to their places; everything else of the run is cleared.
  bool scatter(T* s, int64_t j0, int64_t j1, const int32_t* at, int64_t n, const T* c, T w, T& sum) const {
    const T scale = o_.sign > 0 ? -w : w;
    T out[kBlock] = {};
    bool any = false;
    for (int64_t k = 0; k < n; ++k) {
      T value = c[k] == T(0) ? T(0) : c[k] * scale;
      value = over_difference(g_.distance, value, s[j0 + at[k]]);
      any |= value != T(0);
      sum += value;
      out[at[k]] = g_.distance == Distance::kDot ? value : -value;
    }
    std::copy(out, out + (j1 - j0), s + j0);
    return any;
  }

  // ---- gradients of the positives
  // ------------------------------------------------------------------------------------------------

  void place_slopes(int64_t i, T w) {
    const bool linear = o_.select == Select::kEvery && count_[i - strip_] <= kLinear;
    const bool ranges = !o_.smooth && !linear;
    double running = 0;
    for (int64_t k = 0; k < count_[i - strip_]; ++k) {
      const double own = weight_[base(i) + k];
      running = ranges ? running + own : own;
      const int64_t j = column_[base(i) + k];
      const T z = z_[base(i) + k], s = o_.sign > 0 ? -z : z;
      T value = static_cast<T>(running) * w * (o_.sign > 0 ? T(-1) : T(1));
      factor_[g_.offset[i] + j - g_.start[i]] = over_difference(g_.distance, value, s);
    }
  }

  TripletOptions o_;
  PairLayout g_;
  Scores<T> scores_;
  const T* rule_;
  int64_t strip_ = 0;
  std::vector<int64_t> begin_, column_, count_;
  std::vector<int> steps_;
  std::vector<T> z_;            // each row's positives, sorted, padded with infinity to a power of two
  std::vector<double> suffix_;  // sums of z from each place to the end
  std::vector<double> weight_;  // how many triplets end (or begin) at each positive; of smooth losses their slopes
  std::vector<T> factor_, row_sum_;
  std::vector<AnchorSums> sums_;
};

}  // namespace

std::unique_ptr<TripletEngine> make_triplet_engine(const TripletOptions& options, const PairLayout& layout, bool is_double) {
  if (is_double) return std::make_unique<Engine<double>>(options, layout);
  return std::make_unique<Engine<float>>(options, layout);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
