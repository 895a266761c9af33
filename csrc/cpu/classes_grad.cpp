#include <algorithm>
#include <cmath>
#include <vector>

#include "class_gather.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

// ---- the way back: a task owns some columns of a group of rows ----

// Rows of a group: few enough for the thread that wrote their products to take up what is still in its cache.
constexpr int64_t kGroup = 128;

// What a log-sum-exp's logits are reduced by; what weighs nothing must not overflow, and without another class there is
// nothing to share out.
template <typename T>
T slope_shift(T fold, T weight) {
  return weight == T(0) ? kInf<T> : fold == -kInf<T> ? T(0) : fold;
}

template <typename T>
void row_slopes(const ClassMaths& maths, const T* p, T bias, T fold, T weight, int64_t count, T* c) {
  if (maths.fold == ClassFold::kRowSquares) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) c[j] = std::abs(p[j]) <= T(1) ? p[j] * (T(2) * weight) : T(0);
    return;
  }
  const T scale = T(maths.scale), shift = slope_shift(fold, weight), factor = weight * scale;
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) c[j] = exp_of((p[j] * scale + bias) - shift) * factor;
}

template <typename T>
void coefficients(const ClassMaths& maths, const ClassBlock& block, const ClassSlopes& slopes, T* out, int64_t ld_out,
                  void* along, void* lifted) {
  const int64_t width = Chunk<T>::width(maths);
  const bool by_class = maths.fold == ClassFold::kClassLse;
  const T *fold = static_cast<const T*>(slopes.fold), *weight = static_cast<const T*>(slopes.weight);
  const T* own = static_cast<const T*>(slopes.own);
  const int64_t all = block.classes * maths.centers, groups = (block.rows + kGroup - 1) / kGroup;
  const int64_t chunks = (block.classes + width - 1) / width;
  ColumnSumsOfGroups along_sums(along != nullptr, groups, all), lifted_sums(lifted != nullptr, groups, all);
  parallel_for(groups * chunks, threads_of(maths, block), [&](int64_t task) {
    const int64_t group = task / chunks, c0 = task % chunks * width;
    Chunk<T> chunk(maths, block);
    chunk.at(c0);
    const int64_t count = chunk.count(), columns = chunk.columns(), first = chunk.first_column();
    std::vector<T> c(count), shift(by_class ? count : 0), factor(by_class ? count : 0);
    for (int64_t j = 0; by_class && j < count; ++j) {
      shift[j] = slope_shift(fold[c0 + j], weight[c0 + j]);
      factor[j] = weight[c0 + j] * T(maths.scale);
    }
    Gather<T> alongs(along_sums.at(group, first), columns), lifts(lifted_sums.at(group, first), columns);
    const T* inverse = chunk.inverse();
    for (int64_t i = group * kGroup; i < std::min(block.rows, (group + 1) * kGroup); ++i) {
      const T* p = chunk.pooled(i);
      if (by_class) {
        const T scale = T(maths.scale), bias = chunk.bias(i);
        T* to = c.data();
#pragma omp simd
        for (int64_t j = 0; j < count; ++j) to[j] = exp_of((p[j] * scale + bias) - shift[j]) * factor[j];
      } else {
        row_slopes(maths, p, chunk.bias(i), fold[i], weight[i], count, c.data());
      }
      const int64_t at = chunk.own(i);
      if (at >= 0) c[at] = own[i];
      const T *h = chunk.unpooled(c.data()), *raw = chunk.products(i);
      T* to = out + i * ld_out + first;
      if (lifts.wanted()) {
        const T e = chunk.lift(i);
        T* sums = lifts.part();
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) sums[j] += e * h[j];
        lifts.row_done();
      }
      if (alongs.wanted()) {
        T* sums = alongs.part();
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) {
          const T d = without_denormals(h[j] * inverse[j]);
          sums[j] += d * raw[j];
          to[j] = d;
        }
        alongs.row_done();
      } else if (inverse != nullptr) {
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) to[j] = without_denormals(h[j] * inverse[j]);
      } else {
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) to[j] = without_denormals(h[j]);
      }
    }
    alongs.finish();
    lifts.finish();
  });
  along_sums.add_to(static_cast<T*>(along));
  lifted_sums.add_to(static_cast<T*>(lifted));
}

}  // namespace

void class_coefficients(const ClassMaths& maths, const ClassBlock& block, const ClassSlopes& slopes, void* out, int64_t ld_out,
                        void* along, void* lifted, bool is_double) {
  is_double ? coefficients(maths, block, slopes, static_cast<double*>(out), ld_out, along, lifted)
            : coefficients(maths, block, slopes, static_cast<float*>(out), ld_out, along, lifted);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
