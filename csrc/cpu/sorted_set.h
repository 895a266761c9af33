// A set of rows as a small batch's step compares it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../runtime/layout.h"
#include "small_matrix.h"
#include "unit_rows.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// Rows in the order of their classes (without labels: in their own) as they are compared, and their gradient: divided by their
// norms where that is asked for, times a factor, with a further feature where one is given.
template <typename T>
struct SortedSet {
  SortedSet(const void* x, const int64_t* labels, int64_t n, int64_t d, bool normalize, T factor = T(1),
            const T* feature = nullptr)
      : n(n),
        d(d),
        width(feature == nullptr ? d : d + 1),
        normalize(normalize),
        factor(factor),
        order(n),
        rows(n * width),
        norm(n, T(1)) {
    if (labels == nullptr)
      std::iota(order.begin(), order.end(), int64_t{0});
    else
      class_order(labels, n, order.data());
    for (int64_t i = 0; i < n; ++i) {
      const T* from = static_cast<const T*>(x) + order[i] * d;
      T* to = row(i);
      if (normalize)
        norm[i] = divide_by_norm(from, d, to);
      else
        std::copy_n(from, d, to);
      if (factor != T(1))
        for (int64_t k = 0; k < d; ++k) to[k] *= factor;
      if (feature != nullptr) to[d] = *feature;
    }
  }

  T* row(int64_t i) { return rows.data() + i * width; }

  // The coefficients times the rows of a set, which may be this one.
  T* gradient(const Strided<T>& h, const SortedSet& other, bool live, int threads) {
    grad.assign(n * width, T(0));
    if (live) multiply(h, n, Panels<T>({other.rows.data(), width, 1}, other.n, width, threads), grad.data(), width, threads);
    return grad.data();
  }

  // Back through the factor, the normalisation and the order.
  void write_gradient(T* out) {
    for (int64_t i = 0; i < n; ++i) {
      T *own = grad.data() + i * width, *compared = row(i), *to = out + order[i] * d;
      if (factor != T(1))
        for (int64_t k = 0; k < d; ++k) {
          own[k] *= factor;
          compared[k] /= factor;
        }
      if (normalize)
        undivided_gradient(own, compared, norm[i], d, to);
      else
        std::copy_n(own, d, to);
    }
  }

  // By the logarithm of the factor and by the feature; before write_gradient().
  T by_log_factor() {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(dot(grad.data() + i * width, row(i), d));
    return static_cast<T>(sum);
  }

  T by_feature() const {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(grad[i * width + d]);
    return static_cast<T>(sum);
  }

  int64_t n, d, width;
  bool normalize;
  T factor;
  std::vector<int64_t> order;
  std::vector<T> rows, norm, grad;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
