// The multi-similarity miner's intervals, found in the sweep that folds: negatives are bounded by their row's hardest positive,
// which is known before it, and positives by the hardest negative, which is known after it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../engine/pair_row.h"
#include "pair_runs.h"

namespace pml_fast {
namespace PML_FAST_ISA {

template <typename T>
class PairSearch {
 public:
  // `sign` is +1 for similarities. A copy of the row itself, which is no pair, may bound the negatives all the same.
  void begin(int64_t n, T epsilon, T sign, bool counts_copies) {
    n_ = n;
    epsilon_ = epsilon;
    sign_ = sign;
    counts_copies_ = counts_copies;
    rule_.resize(4 * n);
    hardest_.assign(n, minus_infinity<T>());
  }

  bool active() const { return n_ > 0; }

  // [4, N]: the lowest and the highest score of the positives, then of the negatives, that are kept.
  const T* rule() const { return rule_.data(); }

  void bound_negatives(int64_t i, const Positives<T>& pos) {
    bool any = false;
    T least = std::numeric_limits<T>::infinity();
    for (int64_t k = 0; k < pos.count; ++k) {
      if (k == pos.self && !counts_copies_) continue;
      const T similarity = sign_ * pos.s[k];
      // A NaN stays.
      if (similarity < least || similarity != similarity) least = similarity;
      any = true;
    }
    if (!any) return close(i, 2);
    const T bound = sign_ * least;
    sign_ > 0 ? keep(i, 2, above(bound - epsilon_), infinity()) : keep(i, 2, -infinity(), below(bound + epsilon_));
  }

  // Negatives of row i, for its own hardest and where the segment mirrors for those of its columns.
  PML_FAST_FLATTEN void see(const T* s, const Segment& seg, T& hardest, std::vector<T>& columns) const {
    const T sign = sign_;
    T top = hardest;
    T* to = columns.data();
#pragma omp simd reduction(max : top)
    for (int64_t j = seg.first; j < seg.last; ++j) top = sign * s[j] > top ? sign * s[j] : top;
    hardest = top;
    if (!seg.mirror) return;
#pragma omp simd
    for (int64_t j = seg.first; j < seg.last; ++j) to[j] = sign * s[j] > to[j] ? sign * s[j] : to[j];
  }

  // Of each row: sign * score.
  std::vector<T>& hardest() { return hardest_; }
  void take(int64_t i, T hardest) { hardest_[i] = std::max(hardest_[i], hardest); }

  void bound_positives(int64_t i) {
    if (hardest_[i] == minus_infinity<T>()) return close(i, 0);
    const T bound = sign_ * hardest_[i];
    sign_ > 0 ? keep(i, 0, -infinity(), below(bound + epsilon_)) : keep(i, 0, above(bound - epsilon_), infinity());
  }

 private:
  static T infinity() { return std::numeric_limits<T>::infinity(); }
  // The closed bounds that mean < and >.
  static T below(T value) { return std::nextafter(value, -infinity()); }
  static T above(T value) { return std::nextafter(value, infinity()); }

  void keep(int64_t i, int side, T low, T high) {
    rule_[side * n_ + i] = low;
    rule_[(side + 1) * n_ + i] = high;
  }

  // An anchor without one side keeps nothing of the other.
  void close(int64_t i, int side) { keep(i, side, infinity(), -infinity()); }

  int64_t n_ = 0;
  T epsilon_ = 0, sign_ = 1;
  bool counts_copies_ = false;
  std::vector<T> rule_, hardest_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
