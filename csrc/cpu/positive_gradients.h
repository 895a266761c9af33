// What positive pairs give to the gradients of their two rows, pair by pair: a class is too small for a matrix product.
#pragma once

#include <cstdint>

#include "scores.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// `factor(i, k)` is what the difference (or inner product) of row i and its k-th column of the same class is multiplied by. A
// row and its own sample are no pair, whatever it says of them.
template <typename T, typename Factor>
class PositiveGradients {
 public:
  PositiveGradients(const PairLayout& layout, const Scores<T>& scores, Factor factor)
      : g_(layout), scores_(scores), factor_(factor) {}

  // Adds the share of row i's positives, in both roles where the columns are the rows.
  void add_row(int64_t i, T* grad) const {
    for (int64_t j = g_.start[i]; j < g_.end[i]; ++j) {
      if (j == g_.own_column(i)) continue;
      T factor = factor_(i, j - g_.start[i]);
      if (g_.itself) factor += factor_(j, i - g_.start[j]);
      add_pair(g_.distance, factor, scores_.row(i), scores_.column(j), g_.d, grad);
    }
  }

  // Adds the share of the rows that column j is a positive of.
  void add_column(int64_t j, T* grad) const {
    for (int64_t i = g_.col_start[j]; i < g_.col_end[j]; ++i)
      add_pair(g_.distance, factor_(i, j - g_.start[i]), scores_.column(j), scores_.row(i), g_.d, grad);
  }

 private:
  const PairLayout& g_;
  const Scores<T>& scores_;
  Factor factor_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
