// What the steps of a small batch share: its rows in the order of their classes, their products, and the way back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "../runtime/layout.h"
#include "../runtime/parallel.h"
#include "scores.h"
#include "small.h"
#include "small_matrix.h"
#include "sorted_set.h"
#include "symmetric.h"

namespace pml_fast {
namespace PML_FAST_ISA {

template <typename T>
class Step {
 public:
  explicit Step(const SmallBatch& batch)
      : b_(batch), set_(b_.x, b_.labels, b_.n, b_.d, b_.normalize), start_(b_.n), end_(b_.n), offset_(b_.n + 1, 0) {
    b_.threads = small_threads(b_.n, b_.n, b_.d, b_.threads);
    const int64_t* order = set_.order.data();
    class_runs(b_.labels, order, b_.n, b_.labels, order, b_.n, start_.data(), end_.data());
    for (int64_t i = 0; i < b_.n; ++i) offset_[i + 1] = offset_[i] + end_[i] - start_[i];
    if (b_.rule != nullptr) {
      rule_.resize(4 * b_.n);
      for (int64_t k = 0; k < 4; ++k)
        for (int64_t i = 0; i < b_.n; ++i) rule_[k * b_.n + i] = static_cast<const T*>(b_.rule)[k * b_.n + order[i]];
    }
  }

  PairLayout layout() const {
    PairLayout g{};
    g.x = g.y = set_.rows.data();
    g.start = g.col_start = start_.data();
    g.end = g.col_end = end_.data();
    g.offset = offset_.data();
    g.rule = b_.rule != nullptr ? rule_.data() : nullptr;
    g.n = g.m = b_.n;
    g.d = b_.d;
    g.itself = g.exclude_self = true;
    g.distance = b_.distance;
    g.threads = b_.threads;
    return g;
  }

  T* products() {
    const Panels<T> columns({set_.rows.data(), 1, b_.d}, b_.d, b_.n, b_.threads);
    tile_.reset(new T[b_.n * b_.n]);
    multiply({set_.rows.data(), b_.d, 1}, b_.n, columns, tile_.get(), b_.n, b_.threads);
    return tile_.get();
  }

  // The symmetric coefficients in the tile times the rows.
  T* gradient(bool live) { return set_.gradient({tile_.get(), b_.n, 1}, set_, live, b_.threads); }

  // The tile becomes its sum with its transpose; `columns` gets what its columns summed to.
  void symmetrise(T* columns) {
    const int64_t n = b_.n;
    std::fill(columns, columns + n, T(0));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) columns[j] += tile_[i * n + j];
    add_transpose(tile_.get(), n, b_.threads);
  }

  T* row(int64_t i) { return set_.row(i); }
  int64_t place(int64_t i) const { return set_.order[i]; }

  // Back through the normalisation and the order, into dx.
  void write_gradient(T* dx) { set_.write_gradient(dx); }

 private:
  SmallBatch b_;
  SortedSet<T> set_;
  std::vector<int64_t> start_, end_, offset_;
  std::vector<T> rule_;
  std::unique_ptr<T[]> tile_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
