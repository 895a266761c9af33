// From dL/dscore of a run of columns to what multiplies the other side's row in the gradient.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "scores.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// `h` [j1 - j0] is dL/dscore of the scores s[j0..j1], which are replaced. Of a distance the sum over the run, which multiplies
// the row itself, is returned, and each column's is added to sums[j] from column `from` on. `largest` grows with their size.
template <typename T>
T to_products(Distance distance, T* s, const T* h, int64_t j0, int64_t j1, T* sums, int64_t from, T& largest) {
  T top = largest;
  if (distance == Distance::kDot) {
#pragma omp simd reduction(max : top)
    for (int64_t j = j0; j < j1; ++j) {
      const T size = std::abs(h[j - j0]);
      top = size <= top ? top : size;
      s[j] = h[j - j0];
    }
    largest = top;
    return T(0);
  }
  T sum = 0;
  T inverse[kBlock], out[kBlock];
  if (distance == Distance::kL2)
    reciprocals(s + j0, j1 - j0, inverse);
  else
    std::fill_n(inverse, j1 - j0, T(2));
#pragma omp simd reduction(+ : sum) reduction(max : top)
  for (int64_t j = j0; j < j1; ++j) {
    const T v = h[j - j0] * inverse[j - j0];
    const T size = std::abs(v);
    top = size <= top ? top : size;
    sum += v;
    out[j - j0] = v;
    s[j] = -v;
  }
  largest = top;
#pragma omp simd
  for (int64_t j = from; j < j1; ++j) sums[j] += out[j - j0];
  return sum;
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
