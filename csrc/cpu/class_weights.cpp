#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "class_gather.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

// The norms of some weights, by one task.
template <typename T>
void norms_of_chunk(const T* w, int64_t count, int64_t d, int64_t count_step, int64_t d_step, T* norms) {
  if (d_step == 1) {
    for (int64_t j = 0; j < count; ++j) {
      const T* row = w + j * count_step;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t k = 0; k < d; ++k) sum += row[k] * row[k];
      norms[j] = std::sqrt(sum);
    }
    return;
  }
  std::vector<double> squares(count, 0.0);
  Gather<T> sums(squares.data(), count);
  for (int64_t k = 0; k < d; ++k) {
    const T* row = w + k * d_step;
    T* part = sums.part();
    if (count_step == 1)
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) part[j] += row[j] * row[j];
    else
      for (int64_t j = 0; j < count; ++j) part[j] += row[j * count_step] * row[j * count_step];
    sums.row_done();
  }
  sums.finish();
  for (int64_t j = 0; j < count; ++j) norms[j] = std::sqrt(T(squares[j]));
}

// body(first, count) for chunks of the weights, on several threads where there are many numbers.
template <typename F>
void for_weights(int64_t count, int64_t d, int threads, F&& body) {
  parallel_for((count + kColumns - 1) / kColumns, count * d < kFewest ? 1 : threads, [&](int64_t task) {
    const int64_t first = task * kColumns;
    body(first, std::min(count, first + kColumns) - first);
  });
}

template <typename T>
void norms_of(const T* w, int64_t count, int64_t d, int64_t count_step, int64_t d_step, T* norms, int threads) {
  for_weights(count, d, threads, [&](int64_t first, int64_t some) {
    norms_of_chunk(w + first * count_step, some, d, count_step, d_step, norms + first);
  });
}

template <typename T>
void make_unit(T* w, int64_t count, int64_t d, int64_t count_step, int64_t d_step, T least, T rounding, int threads) {
  for_weights(count, d, threads, [&](int64_t first, int64_t some) {
    T* part = w + first * count_step;
    std::vector<T> norms(some);
    norms_of_chunk(part, some, d, count_step, d_step, norms.data());
    bool all = true;
    for (T& norm : norms) {
      const bool unit = std::abs(norm - T(1)) <= rounding;
      all = all && unit;
      norm = unit ? T(1) : norm < least ? least : norm;
    }
    if (all) return;
    if (d_step == 1)
      for (int64_t j = 0; j < some; ++j)
        for (int64_t k = 0; k < d; ++k) part[j * count_step + k] /= norms[j];
    else
      for (int64_t k = 0; k < d; ++k)
        for (int64_t j = 0; j < some; ++j) part[k * d_step + j * count_step] /= norms[j];
  });
}

}  // namespace

void class_norms(const void* weights, int64_t count, int64_t d, int64_t count_step, int64_t d_step, void* norms, int threads,
                 bool is_double) {
  if (is_double)
    norms_of(static_cast<const double*>(weights), count, d, count_step, d_step, static_cast<double*>(norms), threads);
  else
    norms_of(static_cast<const float*>(weights), count, d, count_step, d_step, static_cast<float*>(norms), threads);
}

void make_unit_weights(void* weights, int64_t count, int64_t d, int64_t count_step, int64_t d_step, double least,
                       double rounding, int threads, bool is_double) {
  const auto run = [&](auto* w) {
    using T = std::remove_pointer_t<decltype(w)>;
    make_unit(w, count, d, count_step, d_step, T(least), T(rounding), threads);
  };
  is_double ? run(static_cast<double*>(weights)) : run(static_cast<float*>(weights));
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
