// The log-sum-exp of each row's negatives, for losses whose positive pairs look at those of both ends, and what flows back.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "pair_positives.h"

namespace pml_fast {
namespace PML_FAST_ISA {

template <typename T>
class PairNeighbours {
 public:
  explicit PairNeighbours(const PairLayout& layout) : g_(layout) {}

  void clear() {
    flow_.assign(g_.offset[g_.n], T(0));
    log_sum_.resize(g_.n);
  }

  void set(int64_t i, T log_sum) { log_sum_[i] = log_sum; }

  // What row i's positives read of their own rows, and where they leave d(row value)/d(that).
  void show(int64_t i, Positives<T>& pos) {
    if (rows_are_columns()) pos.other = log_sum_.data() + g_.start[i];
    pos.back = flow_.data() + g_.offset[i];
  }

  // d(loss)/d(log-sum-exp) of a row, of whose own value it is `own`: its own, and that of the rows it is a positive of. Then
  // over the exponentials, whose logits were reduced by `level`.
  T weigh(int64_t i, const T* weights, T own, T level) const {
    T sum = weighed(weights[i], own);
    if (rows_are_columns())
      for (int64_t j = g_.start[i]; j < g_.end[i]; ++j) sum += weighed(weights[j], flow_[g_.offset[j] + i - g_.start[j]]);
    return log_sum_[i] == minus_infinity<T>() ? T(0) : sum * std::exp(level - log_sum_[i]);
  }

 private:
  // Columns are rows where they are the same samples in the same order.
  bool rows_are_columns() const { return g_.exclude_self && g_.own == nullptr; }

  PairLayout g_;
  std::vector<T> log_sum_, flow_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
