// What is added to the gradients of a pair loss beside its matrix products.
#pragma once

#include <cstdint>
#include <vector>

#include "pair_positives.h"
#include "positive_gradients.h"
#include "scores.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// The sums that multiply a row itself where the score is a distance, and the positives' share. Products that were collected
// before the rows had weights are weighed here, and their sums with them.
template <typename T>
class PairGradients {
 public:
  PairGradients(const PairLayout& layout, const Scores<T>& scores) : g_(layout), scores_(scores) {}

  void clear() {
    rows_.assign(g_.n, T(0));
    columns_.assign(g_.itself ? 0 : g_.m, T(0));
  }

  // Of a tile's columns, which are rows where the sets are one.
  T* column_sums() { return g_.itself ? rows_.data() : columns_.data(); }
  void add_row_sum(int64_t i, T sum) { rows_[i] += sum; }

  void finish_row(int64_t i, const PairPositives<T>& positives, const T* weight, T* grad) {
    finish(weight, rows_[i], scores_.row(i), grad);
    pairs(positives).add_row(i, grad);
  }

  void finish_column(int64_t j, const PairPositives<T>& positives, const T* weight, T* grad) {
    finish(weight, columns_[j], scores_.column(j), grad);
    pairs(positives).add_column(j, grad);
  }

 private:
  // `weight` is null where the products have theirs.
  void finish(const T* weight, T sum, const T* own, T* grad) const {
    if (weight != nullptr) {
      for (int64_t k = 0; k < g_.d; ++k) grad[k] = weighed(*weight, grad[k]);
      sum = weighed(*weight, sum);
    }
    add_own(g_.distance, sum, own, g_.d, grad);
  }

  auto pairs(const PairPositives<T>& positives) const {
    return PositiveGradients(g_, scores_, [&positives](int64_t i, int64_t k) { return positives.factor(i, k); });
  }

  const PairLayout& g_;
  const Scores<T>& scores_;
  std::vector<T> rows_, columns_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
