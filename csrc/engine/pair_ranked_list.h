// Ranked list loss: means of the violations of either side, weighted by exponentials of themselves.
#pragma once

#include <cstdint>
#include <vector>

#include "pair_row.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// Means weighted by exponentials. A row's floor keeps the mean over no pair at 0: so much for each column of the comparison.
template <typename T>
struct RankedList : OneTerm {
  using Fold = WeightedFold<T>;
  static constexpr double kFloor = 1e-5;
  T boundary, t_pos, t_neg, imbalance, alpha;
  RankedList(const std::vector<double>& p, double, const std::vector<Limits>&)
      : boundary(T(p.at(3) - p.at(0))), t_pos(T(p.at(4))), t_neg(T(p.at(1))), imbalance(T(p.at(2))), alpha(T(p.at(3))) {}
  Fold fold() const { return {alpha, t_neg}; }
  T weight(T s) const {
    const T x = s - boundary;
    return ((x <= T(0)) | (s <= T(0))) ? T(0) : std::exp(t_pos * x);
  }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    T columns = neg.sum[2] + (pos.self >= 0 ? T(1) : T(0)), total = 0, share = 0;
    for (int64_t k = 0; k < pos.count; ++k) {
      if (!pos.keeps(k)) continue;
      const T w = weight(pos.s[k]);
      columns += T(1);
      total += w;
      if (w != T(0)) share += w * (pos.s[k] - boundary);
    }
    row.count[0] = T(1);
    if (columns == T(0)) return;
    const T floor = T(kFloor) * columns;
    const T mean_pos = share / (total + floor), mean_neg = neg.sum[1] / (neg.sum[0] + floor);
    row.value[0] = (T(1) - imbalance) * mean_pos + imbalance * mean_neg;
    for (int64_t k = 0; k < pos.count; ++k) {
      const T w = pos.keeps(k) ? weight(pos.s[k]) : T(0);
      if (w != T(0)) pos.q[k] = (T(1) - imbalance) * w * (T(1) + t_pos * (pos.s[k] - boundary - mean_pos)) / (total + floor);
    }
    const T factor = imbalance / (neg.sum[0] + floor);
    row.back[0] = factor * (T(1) - t_neg * mean_neg);
    row.back[1] = factor * t_neg;
  }
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
