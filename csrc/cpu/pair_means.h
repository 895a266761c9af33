// The mean score of either side over all pairs of a call, for losses that compare with it, and what flows back to it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "pair_positives.h"

namespace pml_fast {
namespace PML_FAST_ISA {

template <typename T>
class PairMeans {
 public:
  bool known() const { return known_; }

  // `sums` and `counts` [n] are those of the rows' negatives. The means of the positives and of the negatives go to take(side,
  // mean).
  template <typename Take>
  void set(const PairPositives<T>& positives, const std::vector<T>& sums, const std::vector<T>& counts, Take&& take) {
    double sum[2] = {0, 0};
    count_[0] = count_[1] = 0;
    for (size_t i = 0; i < sums.size(); ++i) {
      const Positives<T> pos = positives.row(static_cast<int64_t>(i));
      for (int64_t k = 0; k < pos.count; ++k)
        if (pos.keeps(k)) {
          sum[0] += static_cast<double>(pos.s[k]);
          count_[0] += 1;
        }
      sum[1] += static_cast<double>(sums[i]);
      count_[1] += static_cast<double>(counts[i]);
    }
    for (int side = 0; side < 2; ++side) take(side, static_cast<T>(sum[side] / std::max(count_[side], 1.0)));
    known_ = true;
  }

  void resize(int64_t n) {
    for (auto& flow : flow_) flow.resize(n);
  }

  // d(row value)/d(mean) of both sides.
  void keep(int64_t i, const T flow[2]) {
    for (int side = 0; side < 2; ++side) flow_[side][i] = flow[side];
  }

  // d(loss)/d(score) of every pair of a side through its mean, `weights` being those of the rows' values: the same for all.
  T share(int side, const T* weights) const {
    double total = 0;
    for (size_t i = 0; i < flow_[side].size(); ++i) total += static_cast<double>(weighed(weights[i], flow_[side][i]));
    return static_cast<T>(total / std::max(count_[side], 1.0));
  }

 private:
  std::vector<T> flow_[2];
  double count_[2] = {0, 0};
  bool known_ = false;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
