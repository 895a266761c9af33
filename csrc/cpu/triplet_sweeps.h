// A run of negatives against each of an anchor's positives in turn: hinges of a few positives, and smooth losses.
#pragma once

#include <cmath>
#include <cstdint>

#include "../engine/math.h"
#include "scores.h"
#include "sorted_positives.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// c = d(sum of the counted losses)/dz of each negative. No miner selects.
template <typename T>
void sweep_hinges(const SortedAnchor<T>& a, const TripletOptions& o, const T* v, int64_t n, T* c) {
  const T margin = T(o.margin);
  T loss[kBlock];
  for (int64_t j = 0; j < n; ++j) loss[j] = c[j] = T(0);
  int64_t total = 0;
  for (int64_t k = 0; k < a.count; ++k) {
    const T own = a.z[k];
    int active = 0;
#pragma omp simd reduction(+ : active)
    for (int64_t j = 0; j < n; ++j) {
      const T violation = (own - v[j]) + margin;
      // Written so that a NaN is added and counted, and seen.
      const bool over = !(violation <= T(0));
      loss[j] += over ? violation : T(0);
      c[j] -= over ? T(1) : T(0);
      active += over ? 1 : 0;
    }
    a.weight[k] += active;
    total += active;
  }
  double sum = 0;
  for (int64_t j = 0; j < n; ++j) sum += static_cast<double>(loss[j]);
  a.sums->loss += sum;
  a.sums->count += o.positive_only ? total : a.count * n;
}

// Whether a miner leaves a triplet, by how much farther its negative is than its positive.
template <typename T>
bool is_selected(const TripletOptions& o, T gap) {
  switch (o.select) {
    case Select::kAll:
      return gap <= T(o.select_margin);
    case Select::kHard:
      return gap <= T(o.select_margin) && gap <= T(0);
    case Select::kSemihard:
      return gap <= T(o.select_margin) && gap > T(0);
    case Select::kEasy:
      return gap > T(o.select_margin);
    default:
      return true;
  }
}

template <typename T>
void sweep_smooth(const SortedAnchor<T>& a, const TripletOptions& o, const T* v, int64_t n, bool gradients, T* c) {
  const T margin = T(o.margin);
  const bool filter = o.select != Select::kEvery;
  T loss[kBlock];
  for (int64_t j = 0; j < n; ++j) loss[j] = c[j] = T(0);
  int64_t total = 0;
  for (int64_t k = 0; k < a.count; ++k) {
    T keep[kBlock];
    for (int64_t j = 0; j < n; ++j) keep[j] = !filter || is_selected(o, v[j] - a.z[k]) ? T(1) : T(0);
    const T own = a.z[k];
    T slope = 0;
    int counted = 0;
#pragma omp simd reduction(+ : slope, counted)
    for (int64_t j = 0; j < n; ++j) {
      const T x = (own - v[j]) + margin;
      const T e = exp_of(-std::abs(x));
      const T value = relu(x) + log1p_of(e);
      const T sigma = (x < T(0) ? e : T(1)) / (T(1) + e);
      const bool in = keep[j] > T(0);
      loss[j] += in ? value : T(0);
      c[j] -= in ? sigma : T(0);
      slope += in ? sigma : T(0);
      counted += in & !(value <= T(0)) ? 1 : 0;
    }
    if (gradients) a.weight[k] += static_cast<double>(slope);
    if (o.positive_only)
      total += counted;
    else
      for (int64_t j = 0; j < n; ++j) total += keep[j] > T(0) ? 1 : 0;
  }
  double sum = 0;
  for (int64_t j = 0; j < n; ++j) sum += static_cast<double>(loss[j]);
  a.sums->loss += sum;
  a.sums->count += total;
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
