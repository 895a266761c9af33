// Scores of rows against columns: exact for one pair, or in place over inner products that a matrix product left.
#pragma once

#include <algorithm>
#include <vector>

#include "../engine/math.h"
#include "pairwise.h"
#include "roots.h"
#include "row_tasks.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// Columns a task owns: its share of a strip stays in the second-level cache, and sums are formed in an order that no number of
// threads changes.
constexpr int64_t kBlock = 256;

// Below this share of the norms |x|^2 + |y|^2 - 2xy has lost digits: the distance is taken again by differences.
constexpr double kNear = 1e-2;

template <typename T>
T dot(const T* a, const T* b, int64_t d) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < d; ++k) sum += a[k] * b[k];
  return sum;
}

template <typename T>
T squared_difference(const T* a, const T* b, int64_t d) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < d; ++k) sum += (a[k] - b[k]) * (a[k] - b[k]);
  return sum;
}

// dL/dscore over what the difference (or inner product) is multiplied by in the gradient of a row. A zero distance has none.
template <typename T>
T over_difference(Distance distance, T c, T score) {
  if (distance == Distance::kDot) return c;
  if (distance == Distance::kL2Squared) return T(2) * c;
  return score == T(0) ? T(0) : c / score;
}

// Adds one pair's share to the gradient of `own`.
template <typename T>
void add_pair(Distance distance, T factor, const T* own, const T* other, int64_t d, T* grad) {
  if (factor == T(0)) return;
  if (distance == Distance::kDot)
#pragma omp simd
    for (int64_t k = 0; k < d; ++k) grad[k] += factor * other[k];
  else
#pragma omp simd
    for (int64_t k = 0; k < d; ++k) grad[k] += factor * (own[k] - other[k]);
}

// Adds a row's own part of its differences, whose other part came from a matrix product.
template <typename T>
void add_own(Distance distance, T sum, const T* own, int64_t d, T* grad) {
  if (distance == Distance::kDot) return;
#pragma omp simd
  for (int64_t k = 0; k < d; ++k) grad[k] += sum * own[k];
}

template <typename T>
class Scores {
 public:
  explicit Scores(const PairLayout& layout)
      : g_(layout), x_(static_cast<const T*>(layout.x)), y_(static_cast<const T*>(layout.y)) {
    if (g_.distance == Distance::kDot) return;
    square_norms(x_, g_.n, x_norm_);
    if (!g_.itself) square_norms(y_, g_.m, y_norm_);
  }

  const T* row(int64_t i) const { return x_ + i * g_.d; }
  const T* column(int64_t j) const { return (g_.itself ? x_ : y_) + j * g_.d; }

  T exact(int64_t i, int64_t j) const {
    if (g_.distance == Distance::kDot) return dot(x_ + i * g_.d, column(j), g_.d);
    const T square = squared_difference(x_ + i * g_.d, column(j), g_.d);
    return g_.distance == Distance::kL2 ? std::sqrt(square) : square;
  }

  // Inner products of row i become scores, in place.
  void from_products(T* s, int64_t i, int64_t j0, int64_t j1) const {
    if (g_.distance == Distance::kDot) return;
    const T* norms = column_norms();
    const T own = x_norm_[i];
    int near = 0;
    T square[kBlock];
#pragma omp simd reduction(+ : near)
    for (int64_t j = j0; j < j1; ++j) {
      const T both = own + norms[j];
      const T value = relu(both - T(2) * s[j]);
      near += value < T(kNear) * both ? 1 : 0;
      square[j - j0] = value;
    }
    if (near != 0)
      for (int64_t j = j0; j < j1; ++j)
        if (square[j - j0] < T(kNear) * (own + norms[j])) square[j - j0] = squared_difference(x_ + i * g_.d, column(j), g_.d);
    if (g_.distance == Distance::kL2)
      square_roots(square, j1 - j0, s + j0);
    else
      std::copy_n(square, j1 - j0, s + j0);
  }

 private:
  void square_norms(const T* rows, int64_t count, std::vector<T>& out) const {
    out.resize(count);
    for_rows(0, count, 64, count * g_.d < 65536 ? 1 : g_.threads,
             [&](int64_t i) { out[i] = dot(rows + i * g_.d, rows + i * g_.d, g_.d); });
  }

  const T* column_norms() const { return g_.itself ? x_norm_.data() : y_norm_.data(); }

  PairLayout g_;
  const T *x_, *y_;
  std::vector<T> x_norm_, y_norm_;  // squared norms, for distances
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
