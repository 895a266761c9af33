// The positives of all rows of a pair loss: their scores and, once a row is finished, what the loss changes by with each.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "../engine/pair_row.h"
#include "scores.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// A row that weighs nothing must not turn an infinite derivative into NaN.
template <typename T>
T weighed(T weight, T derivative) {
  return weight == T(0) ? T(0) : weight * derivative;
}

template <typename T>
class PairPositives {
 public:
  explicit PairPositives(const PairLayout& layout) : g_(layout), scores_(layout.offset[layout.n]) {}

  // Closed intervals of the scores that count, [4, N] of which the first two are the positives'.
  void take_rule(const T* rule) {
    low_ = rule;
    high_ = rule + g_.n;
  }

  void score(int64_t i, const Scores<T>& scores) {
    T* s = scores_.data() + g_.offset[i];
    for (int64_t j = g_.start[i]; j < g_.end[i]; ++j) s[j - g_.start[i]] = scores.exact(i, j);
  }

  Positives<T> row(int64_t i) const {
    const T infinity = std::numeric_limits<T>::infinity();
    const int64_t self = g_.exclude_self ? g_.own_column(i) - g_.start[i] : -1;
    const T low = low_ != nullptr ? low_[i] : -infinity, high = high_ != nullptr ? high_[i] : infinity;
    return {scores_.data() + g_.offset[i], nullptr, g_.end[i] - g_.start[i], self, low, high};
  }

  bool any() const {
    for (int64_t i = 0; i < g_.n; ++i) {
      const Positives<T> pos = row(i);
      for (int64_t k = 0; k < pos.count; ++k)
        if (pos.keeps(k)) return true;
    }
    return false;
  }

  // d(row value)/d(score), then d(loss)/d(score).
  void clear_slopes() { slopes_.assign(scores_.size(), T(0)); }
  T* slopes(int64_t i) { return slopes_.data() + g_.offset[i]; }

  void weigh(int64_t i, T weight) {
    for (int64_t k = g_.offset[i]; k < g_.offset[i + 1]; ++k) slopes_[k] = weighed(weight, slopes_[k]);
  }

  // dL/dscore of a positive pair over what its difference (or inner product) is multiplied by.
  T factor(int64_t i, int64_t k) const {
    const T q = slopes_[g_.offset[i] + k];
    if (q == T(0)) return T(0);
    return over_difference(g_.distance, q, scores_[g_.offset[i] + k]);
  }

 private:
  PairLayout g_;
  const T *low_ = nullptr, *high_ = nullptr;  // closed interval of each row's positives, or null
  std::vector<T> scores_, slopes_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
