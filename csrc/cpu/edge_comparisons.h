// Differences of one positive and a run of negatives, compared with a few edges at a time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../engine/histogram.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// Calls body(first edge, how many) for the edges from..to, a few at a time; the number is a constant of the call.
template <typename F>
void by_edges(int64_t from, int64_t to, F&& body) {
  while (to - from >= 4) {
    body(from, std::integral_constant<int, 4>());
    from += 4;
  }
  if (to - from >= 2) {
    body(from, std::integral_constant<int, 2>());
    from += 2;
  }
  if (to > from) body(from, std::integral_constant<int, 1>());
}

// How many differences reach each of kEdges edges, and their sums.
template <int kEdges, typename T>
void reach(const T* s, int64_t n, T own, const T* edge, Tally* out) {
  const T e0 = edge[0], e1 = edge[kEdges > 1 ? 1 : 0], e2 = edge[kEdges > 2 ? 2 : 0], e3 = edge[kEdges > 2 ? 3 : 0];
  T n0 = 0, n1 = 0, n2 = 0, n3 = 0, v0 = 0, v1 = 0, v2 = 0, v3 = 0;
#pragma omp simd reduction(+ : n0, n1, n2, n3, v0, v1, v2, v3)
  for (int64_t j = 0; j < n; ++j) {
    const T v = own - s[j];
    n0 += v >= e0 ? T(1) : T(0);
    v0 += v >= e0 ? v : T(0);
    if constexpr (kEdges > 1) {
      n1 += v >= e1 ? T(1) : T(0);
      v1 += v >= e1 ? v : T(0);
    }
    if constexpr (kEdges > 2) {
      n2 += v >= e2 ? T(1) : T(0);
      v2 += v >= e2 ? v : T(0);
      n3 += v >= e3 ? T(1) : T(0);
      v3 += v >= e3 ? v : T(0);
    }
  }
  const T counts[] = {n0, n1, n2, n3}, sums[] = {v0, v1, v2, v3};
  for (int k = 0; k < kEdges; ++k) out[k] = {static_cast<double>(counts[k]), static_cast<double>(sums[k])};
}

// Takes the rise of the level at each edge that a difference reaches from the negative's slope; the sum of these rises.
template <int kEdges, typename T>
double subtract(const T* s, int64_t n, T own, const T* edge, const double* level, T* c) {
  const T e0 = edge[0], e1 = edge[kEdges > 1 ? 1 : 0], e2 = edge[kEdges > 2 ? 2 : 0], e3 = edge[kEdges > 2 ? 3 : 0];
  double rise[4] = {0, 0, 0, 0};
  for (int k = 0; k < kEdges; ++k) rise[k] = level[k + 1] - level[k];
  const T r0 = static_cast<T>(rise[0]), r1 = static_cast<T>(rise[1]), r2 = static_cast<T>(rise[2]),
          r3 = static_cast<T>(rise[3]);
  T n0 = 0, n1 = 0, n2 = 0, n3 = 0;
#pragma omp simd reduction(+ : n0, n1, n2, n3)
  for (int64_t j = 0; j < n; ++j) {
    const T v = own - s[j];
    T slope = v >= e0 ? r0 : T(0);
    n0 += v >= e0 ? T(1) : T(0);
    if constexpr (kEdges > 1) {
      slope += v >= e1 ? r1 : T(0);
      n1 += v >= e1 ? T(1) : T(0);
    }
    if constexpr (kEdges > 2) {
      slope += v >= e2 ? r2 : T(0);
      n2 += v >= e2 ? T(1) : T(0);
      slope += v >= e3 ? r3 : T(0);
      n3 += v >= e3 ? T(1) : T(0);
    }
    c[j] -= slope;
  }
  return rise[0] * n0 + rise[1] * n1 + rise[2] * n2 + rise[3] * n3;
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
