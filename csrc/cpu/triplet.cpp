#include "triplet.h"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "../engine/triplet_rows.h"
#include "../runtime/parallel.h"
#include "radix_sort.h"
#include "scores.h"
#include "symmetric.h"
#include "triplet_search.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

// Below this many positives a comparison with each beats a search.
constexpr int64_t kLinear = 12;
constexpr int64_t kCopies = 4;

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
    for (int64_t i = i0; i < i1; ++i) begin_[i - i0 + 1] = begin_[i - i0] + Boundaries<T>::padded(g_.end[i] - g_.start[i]);
    const int64_t size = g_.offset[i1] - g_.offset[i0];
    z_.resize(begin_[i1 - i0]);
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

  void symmetrise(void* tile, int64_t n) const override { add_transpose(static_cast<T*>(tile), n, g_.threads); }

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

  // Where a row's tables begin: of values, padded for a search, and of all else.
  int64_t base(int64_t i) const { return begin_[i - strip_]; }
  int64_t place(int64_t i) const { return g_.offset[i] - g_.offset[strip_]; }

  T toward(T s) const { return o_.sign > 0 ? -s : s; }

  // ---- positives
  // ---------------------------------------------------------------------------------------------------------------

  void sort_positives(int64_t i, const T* scores) {
    thread_local RadixSort<T> pos;
    pos.clear();
    T nan = 0;
    for (int64_t j = g_.start[i]; j < g_.end[i]; ++j) {
      if (j == g_.own_column(i)) continue;
      const T s = scores[j];
      if (rule_ != nullptr && (s < rule_[i] || s > rule_[g_.n + i])) continue;
      nan += s - s;
      pos.push(toward(s), j);
    }
    // A NaN cannot be sorted: it is remembered, and the row's sum made NaN.
    poisoned(i, nan);
    pos.sort();
    const int64_t count = pos.size();
    count_[i - strip_] = count;
    T* z = z_.data() + base(i);
    std::fill(z + count, z_.data() + base(i + 1), std::numeric_limits<T>::infinity());
    double suffix = 0;
    for (int64_t k = count - 1; k >= 0; --k) {
      z[k] = pos.value(k);
      column_[place(i) + k] = pos.payload(k);
      suffix += static_cast<double>(z[k]);
      suffix_[place(i) + k] = suffix;
    }
  }

  void poisoned(int64_t i, T nan) {
    if (nan != nan) sums_[i].loss = std::numeric_limits<double>::quiet_NaN();
  }

  // ---- negatives
  // ---------------------------------------------------------------------------------------------------------------

  // What a thread needs for the row in work.
  struct Work {
    Boundaries<T> active, low, high;
    std::vector<int32_t> hist;  // kCopies tables of where ranges of positives begin, less where they end
  };

  bool fold_row(T* s, int64_t i, int64_t j0, int64_t j1, bool gradients, T w) {
    thread_local Work work;
    const bool ranges = count_[i - strip_] > 0 && searches(i);
    if (ranges) open_ranges(i, work);
    bool any = false;
    T sum = 0;
    for (int64_t b0 = j0; b0 < j1; b0 += kBlock) {
      const int64_t b1 = std::min(j1, b0 + kBlock);
      // The row's own class is left out: prepare() may have turned its products into scores already.
      const int64_t hole = std::clamp(g_.start[i], b0, b1), after = std::clamp(g_.end[i], hole, b1);
      scores_.from_products(s, i, b0, hole);
      scores_.from_products(s, i, after, b1);
      any |= rule_ == nullptr ? fold_all(s, i, b0, b1, gradients, w, sum, work)
                              : fold_ruled(s, i, b0, b1, gradients, w, sum, work);
    }
    if (ranges) close_ranges(i, work);
    row_sum_[i] += sum;
    return any;
  }

  // Without a rule the negatives are all but one run of columns.
  bool fold_all(T* s, int64_t i, int64_t b0, int64_t b1, bool gradients, T w, T& sum, Work& work) {
    const int64_t hole = std::clamp(g_.start[i], b0, b1), after = std::clamp(g_.end[i], hole, b1);
    bool any = fold_run(s + b0, i, hole - b0, gradients, w, sum, work);
    if (gradients) std::fill(s + hole, s + after, T(0));
    any |= fold_run(s + after, i, b1 - after, gradients, w, sum, work);
    return any;
  }

  bool fold_run(T* s, int64_t i, int64_t n, bool gradients, T w, T& sum, Work& work) {
    if (n == 0) return false;
    T v[kBlock], c[kBlock];
    const T flip = o_.sign > 0 ? T(-1) : T(1);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) v[j] = flip * s[j];
    fold_negatives(i, v, n, gradients, c, work);
    return gradients && coefficients(s, n, c, w, sum);
  }

  bool fold_ruled(T* s, int64_t i, int64_t b0, int64_t b1, bool gradients, T w, T& sum, Work& work) {
    T v[kBlock], c[kBlock], kept[kBlock];
    int32_t at[kBlock];
    const int64_t n = gather(s, i, b0, b1, v, at);
    fold_negatives(i, v, n, gradients, c, work);
    if (!gradients) return false;
    for (int64_t k = 0; k < n; ++k) kept[k] = s[b0 + at[k]];
    const bool any = coefficients(kept, n, c, w, sum);
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
      v[n] = toward(s[j]);
      at[n++] = static_cast<int32_t>(j - j0);
    }
    return n;
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

  // Whether negatives meet a range of the sorted positives, found by search.
  bool searches(int64_t i) const { return !o_.smooth && (o_.select != Select::kEvery || count_[i - strip_] > kLinear); }

  // c = d(sum of the counted losses)/dz of each negative.
  void fold_negatives(int64_t i, const T* v, int64_t n, bool gradients, T* c, Work& work) {
    if (count_[i - strip_] == 0)
      std::fill(c, c + n, T(0));
    else if (o_.smooth)
      smooth_run(i, v, n, gradients, c);
    else if (searches(i))
      search_run(i, v, n, c, work);
    else
      linear_run(i, v, n, c);
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
        // Written so that a NaN is added and counted, and seen.
        const bool over = !(violation <= T(0));
        loss[j] += over ? violation : T(0);
        c[j] -= over ? T(1) : T(0);
        active += over ? 1 : 0;
      }
      weight_[place(i) + k] += active;
      total += active;
    }
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += static_cast<double>(loss[j]);
    sums_[i].loss += sum;
    sums_[i].count += o_.positive_only ? total : count_[i - strip_] * n;
  }

  // ---- predicates of a search: the triplet is violated; its negative is within the miner's margin; it is the closer one

  auto violated() const {
    return [m = T(o_.margin)](T z, T v) { return (z - v) + m > T(0); };
  }
  auto within() const {
    return [m = T(o_.select_margin)](T z, T v) { return v - z <= m; };
  }
  static bool wrong(T z, T v) { return v - z <= T(0); }
  auto both() const {
    return [near = within()](T z, T v) { return near(z, v) && wrong(z, v); };
  }

  void open_ranges(int64_t i, Work& work) const {
    const T* z = z_.data() + base(i);
    const int64_t p = count_[i - strip_];
    const T selected = T(o_.select_margin);
    work.hist.assign(kCopies * (p + 1), 0);
    work.active.build(z, p, T(o_.margin), violated());
    if (o_.select == Select::kAll || o_.select == Select::kSemihard) work.low.build(z, p, selected, within());
    if (o_.select == Select::kHard) work.low.build(z, p, std::min(selected, T(0)), both());
    if (o_.select == Select::kSemihard) work.high.build(z, p, T(0), wrong);
    if (o_.select == Select::kEasy) work.high.build(z, p, selected, within());
  }

  // Sum of ap over all triplets of the run, and how many triplets each positive is in.
  void close_ranges(int64_t i, const Work& work) {
    const double* suffix = suffix_.data() + place(i);
    double* weight = weight_.data() + place(i);
    const int64_t p = count_[i - strip_];
    double loss = 0;
    for (int64_t k = 0; k < p; ++k) {
      int64_t ends = 0;
      for (int64_t copy = 0; copy < kCopies; ++copy) ends += work.hist[copy * (p + 1) + k];
      if (ends == 0) continue;
      loss += static_cast<double>(ends) * suffix[k];
      weight[k] += static_cast<double>(ends);
    }
    sums_[i].loss += loss;
  }

  void search_run(int64_t i, const T* v, int64_t n, T* c, Work& work) {
    const int32_t p = static_cast<int32_t>(count_[i - strip_]);
    int32_t begin[kBlock], low[kBlock], high[kBlock];
    work.active.find(v, n, violated(), begin);
    const bool bounded = o_.select != Select::kEvery;
    if (bounded) {
      std::fill(low, low + n, 0);
      std::fill(high, high + n, p);
      if (o_.select == Select::kAll || o_.select == Select::kSemihard) work.low.find(v, n, within(), low);
      if (o_.select == Select::kHard) work.low.find(v, n, both(), low);
      if (o_.select == Select::kSemihard) work.high.find(v, n, wrong, high);
      if (o_.select == Select::kEasy) work.high.find(v, n, within(), high);
      for (int64_t j = 0; j < n; ++j) {
        high[j] = std::min(high[j], p);
        begin[j] = std::min(std::max(begin[j], low[j]), high[j]);
      }
    } else {
      for (int64_t j = 0; j < n; ++j) begin[j] = std::min(begin[j], p);
    }
    // A NaN has no boundary: every triplet of it counts, and is seen.
    for (int64_t j = 0; j < n; ++j) begin[j] = v[j] == v[j] ? begin[j] : (bounded ? std::min(low[j], high[j]) : 0);
    count_ends(begin, n, p, 1, work);
    if (bounded) count_ends(high, n, p, -1, work);
    double loss = 0;
    int64_t total = 0;
#pragma omp simd reduction(+ : loss, total)
    for (int64_t j = 0; j < n; ++j) {
      const int32_t count = (bounded ? high[j] : p) - begin[j];
      loss += count * (o_.margin - static_cast<double>(v[j]));
      c[j] = static_cast<T>(-count);
      total += o_.positive_only ? count : (bounded ? std::max(high[j] - low[j], 0) : p);
    }
    sums_[i].loss += loss;
    sums_[i].count += total;
  }

  // Negatives of one row often end at one place: in turn they write to tables of their own, and none waits for the last.
  static void count_ends(const int32_t* at, int64_t n, int32_t p, int32_t by, Work& work) {
    int32_t* hist = work.hist.data();
    int64_t j = 0;
    for (; j + kCopies <= n; j += kCopies)
      for (int64_t copy = 0; copy < kCopies; ++copy) hist[copy * (p + 1) + at[j + copy]] += by;
    for (; j < n; ++j) hist[at[j]] += by;
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
      if (gradients) weight_[place(i) + k] += static_cast<double>(slope);
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

  // ---- gradients of the positives
  // ------------------------------------------------------------------------------------------------

  void place_slopes(int64_t i, T w) {
    const bool ranges = searches(i);
    double running = 0;
    for (int64_t k = 0; k < count_[i - strip_]; ++k) {
      const double own = weight_[place(i) + k];
      running = ranges ? running + own : own;
      const int64_t j = column_[place(i) + k];
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
  std::vector<T> z_;            // each row's positives, sorted, padded with infinity for a search
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
