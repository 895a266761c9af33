// A square matrix plus its transpose, in place.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../engine/math.h"
#include "../runtime/parallel.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// By pairs of blocks that mirror each other: both stay in the first-level cache, and no two tasks meet.
template <typename T>
void add_transpose(T* a, int64_t n, int threads) {
  constexpr int64_t kSide = 32;
  const int64_t blocks = (n + kSide - 1) / kSide;
  parallel_for(blocks, threads, [&](int64_t task) {
    const int64_t i0 = task * kSide, i1 = std::min(n, i0 + kSide);
    for (int64_t j0 = i0; j0 < n; j0 += kSide) {
      const int64_t j1 = std::min(n, j0 + kSide);
      T turned[kSide][kSide];
      for (int64_t j = j0; j < j1; ++j)
        for (int64_t i = i0; i < i1; ++i) turned[i - i0][j - j0] = a[j * n + i];
      for (int64_t i = i0; i < i1; ++i) {
        T* row = a + i * n;
#pragma omp simd
        for (int64_t j = j0; j < j1; ++j) turned[i - i0][j - j0] += row[j];
      }
      for (int64_t i = i0; i < i1; ++i)
        for (int64_t j = j0; j < j1; ++j) a[i * n + j] = turned[i - i0][j - j0];
      for (int64_t j = j0; j < j1; ++j)
        for (int64_t i = i0; i < i1; ++i) a[j * n + i] = turned[i - i0][j - j0];
    }
  });
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
