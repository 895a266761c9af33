#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "../engine/pair_row.h"
#include "row_tasks.h"
#include "small.h"
#include "small_fold.h"
#include "sorted_set.h"
#include "symmetric.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

// Rows a task owns.
constexpr int64_t kFewRows = 8;

template <typename T>
class SoftTargets {
 public:
  SoftTargets(const SmallBatch& batch, const SmallTargets& list)
      : t_(list),
        itself_(list.y == nullptr),
        others_(itself_ && !list.own),
        n_(batch.n),
        m_(itself_ ? batch.n : list.m),
        d_(batch.d),
        distance_(batch.distance),
        threads_(small_threads(n_, m_, d_, batch.threads)),
        scale_(static_cast<T>(list.scale)),
        target_(static_cast<const T*>(list.target)),
        x_(batch.x, nullptr, n_, d_, batch.normalize),
        first_(n_ + 1, 0),
        total_(n_, T(0)),
        log_all_(n_, T(0)),
        weight_(n_),
        tile_(new T[n_ * m_]) {
    if (!itself_) y_.emplace(list.y, nullptr, m_, d_, batch.normalize);
    for (int64_t k = 0; k < list.count; ++k) {
      ++first_[list.row[k] + 1];
      total_[list.row[k]] += target_[k];
    }
    std::partial_sum(first_.begin(), first_.end(), first_.begin());
  }

  T loss() {
    SortedSet<T>& y = columns();
    multiply({x_.rows.data(), d_, 1}, n_, Panels<T>({y.rows.data(), 1, d_}, d_, m_, threads_), tile_.get(), m_, threads_);
    PairLayout layout{};
    layout.x = x_.rows.data(), layout.y = y.rows.data();
    layout.n = n_, layout.m = m_, layout.d = d_;
    layout.itself = itself_;
    layout.distance = distance_;
    const Scores<T> scores(layout);
    std::vector<T> value(n_, T(0)), count(n_, T(1));
    for_rows(0, n_, kFewRows, threads_, [&](int64_t i) {
      // Of a row without targets nothing is looked at.
      if (first_[i] == first_[i + 1]) return;
      T* s = tile_.get() + i * m_;
      for (int64_t j = 0; j < m_; j += kBlock) scores.from_products(s, i, j, std::min(m_, j + kBlock));
      value[i] = cross_entropy(i, s);
    });
    return reduce(t_.term, t_.limits, value.data(), count.data(), n_, weight_.data());
  }

  // After loss(), which leaves the scores.
  void gradients(T* dx, T* dy) {
    std::vector<T> own(n_, T(0)), other(m_, T(0));
    for_rows(0, n_, kFewRows, threads_, [&](int64_t i) { own[i] = coefficients(i, tile_.get() + i * m_); });
    const bool live = std::any_of(weight_.begin(), weight_.end(), [](T w) { return w != T(0); });
    if (distance_ != Distance::kDot)
      for (int64_t i = 0; i < n_; ++i)
        for (int64_t j = 0; j < m_; ++j) other[j] -= tile_[i * m_ + j];
    if (itself_) {
      add_transpose(tile_.get(), n_, threads_);
      for (int64_t i = 0; i < n_; ++i) own[i] += other[i];
    }
    SortedSet<T>& y = columns();
    if (dx != nullptr) finish(x_, {tile_.get(), m_, 1}, y, own, live, dx);
    if (dy != nullptr) finish(y, {tile_.get(), 1, m_}, x_, other, live, dy);
  }

 private:
  SortedSet<T>& columns() { return itself_ ? x_ : *y_; }

  // The row's loss and, kept, the logarithm of its sum.
  T cross_entropy(int64_t i, const T* s) {
    const T scale = scale_, least = minus_infinity<T>();
    T top = least, sum = T(0);
    const auto over_others = [&](auto&& part) {
      part(0, others_ ? i : m_);
      if (others_) part(i + 1, m_);
    };
    over_others([&](int64_t from, int64_t to) {
      T most = least;
#pragma omp simd reduction(max : most)
      for (int64_t j = from; j < to; ++j) most = scale * s[j] > most ? scale * s[j] : most;
      top = std::max(top, most);
    });
    over_others([&](int64_t from, int64_t to) {
      T part = T(0);
#pragma omp simd reduction(+ : part)
      for (int64_t j = from; j < to; ++j) part += exp_of(scale * s[j] - top);
      sum += part;
    });
    const T log_all = top + std::log(sum);
    T loss = T(0);
    for (int64_t k = first_[i]; k < first_[i + 1]; ++k) loss += target_[k] * (log_all - scale * s[t_.column[k]]);
    log_all_[i] = log_all;
    return loss;
  }

  // The row's scores become what its columns are multiplied by in its gradient; returns what the row itself is.
  T coefficients(int64_t i, T* s) {
    const T w = scale_ * weight_[i], share = w * total_[i];
    if (w == T(0) || first_[i] == first_[i + 1]) {
      std::fill_n(s, m_, T(0));
      return T(0);
    }
    std::vector<T> score(distance_ == Distance::kL2 ? m_ : 0);
    if (distance_ == Distance::kL2) std::copy_n(s, m_, score.data());
    const T scale = scale_, log_all = log_all_[i];
#pragma omp simd
    for (int64_t j = 0; j < m_; ++j) s[j] = share * exp_of(scale * s[j] - log_all);
    if (others_) s[i] = T(0);
    for (int64_t k = first_[i]; k < first_[i + 1]; ++k) s[t_.column[k]] -= w * target_[k];
    if (distance_ == Distance::kDot) return T(0);
    T own = T(0);
    for (int64_t j = 0; j < m_; ++j) {
      const T factor = over_difference(distance_, s[j], score.empty() ? T(0) : score[j]);
      own += factor;
      s[j] = -factor;
    }
    return own;
  }

  void finish(SortedSet<T>& set, const Strided<T>& h, const SortedSet<T>& other, const std::vector<T>& own, bool live, T* out) {
    T* grad = set.gradient(h, other, live, threads_);
    for (int64_t i = 0; i < set.n; ++i) add_own(distance_, own[i], set.row(i), d_, grad + i * d_);
    set.write_gradient(out);
  }

  const SmallTargets& t_;
  bool itself_, others_;  // one set; a row is no column of its own
  int64_t n_, m_, d_;
  Distance distance_;
  int threads_;
  T scale_;
  const T* target_;
  SortedSet<T> x_;
  std::optional<SortedSet<T>> y_;
  // Where each row's targets begin, what they sum to, the logarithms of the rows' sums, and the rows' weights in the loss.
  std::vector<int64_t> first_;
  std::vector<T> total_, log_all_, weight_;
  std::unique_ptr<T[]> tile_;
};

// Whether the targets name rows and columns that there are, in the order of the rows.
bool in_order(const SmallTargets& t, int64_t n, int64_t m) {
  int64_t before = 0;
  for (int64_t k = 0; k < t.count; before = t.row[k++])
    if (t.row[k] < before || t.row[k] >= n || t.column[k] < 0 || t.column[k] >= m) return false;
  return true;
}

template <typename T>
SmallResult run(const SmallBatch& batch, const SmallTargets& targets, T* loss, T* dx, T* dy) {
  if (!in_order(targets, batch.n, targets.y == nullptr ? batch.n : targets.m)) return SmallResult::refused;
  SoftTargets<T> step(batch, targets);
  *loss = step.loss();
  if (dx != nullptr || dy != nullptr) step.gradients(dx, dy);
  return *loss == T(0) ? SmallResult::nothing : SmallResult::done;
}

}  // namespace

SmallResult small_soft_targets(const SmallBatch& batch, const SmallTargets& targets, void* loss, void* dx, void* dy,
                               bool is_double) {
  return is_double ? run(batch, targets, static_cast<double*>(loss), static_cast<double*>(dx), static_cast<double*>(dy))
                   : run(batch, targets, static_cast<float*>(loss), static_cast<float*>(dx), static_cast<float*>(dy));
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
