#include <algorithm>
#include <vector>

#include "class_chunk.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

template <typename T>
void logits(const T* p, T scale, T bias, int64_t count, T* z) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) z[j] = p[j] * scale + bias;
}

// ---- folds by row: a task owns some rows, over all columns ----

template <typename T>
void fold_row_lse(const ClassMaths& maths, Chunk<T>& chunk, int64_t i, T* z, T& top, double& sum, T* own) {
  const T* p = chunk.pooled(i);
  logits(p, T(maths.scale), chunk.bias(i), chunk.count(), z);
  const int64_t at = chunk.own(i);
  if (at >= 0) {
    own[i] = p[at];
    z[at] = -kInf<T>;
  }
  const T part_top = largest(z, chunk.count());
  merge(top, sum, part_top, double(exp_sum(z, chunk.count(), shift_of(part_top))));
}

template <typename T>
void fold_row_squares(Chunk<T>& chunk, int64_t i, T* z, double& sum, T* own) {
  const T* p = chunk.pooled(i);
  const int64_t at = chunk.own(i), count = chunk.count();
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    const T low = p[j] < T(-1) ? T(-1) : p[j];
    z[j] = low > T(1) ? T(1) : low;
  }
  if (at >= 0) {
    own[i] = p[at];
    z[at] = T(0);
  }
  T part = 0;
#pragma omp simd reduction(+ : part)
  for (int64_t j = 0; j < count; ++j) part += z[j] * z[j];
  sum += double(part);
}

template <typename T>
void fold_rows(const ClassMaths& maths, const ClassBlock& block, const ClassState& state, T* own) {
  T* top = static_cast<T*>(state.top);
  constexpr int64_t kTask = 8;
  parallel_for((block.rows + kTask - 1) / kTask, threads_of(maths, block), [&](int64_t task) {
    Chunk<T> chunk(maths, block);
    std::vector<T> z(Chunk<T>::width(maths));
    for (int64_t i = task * kTask; i < std::min(block.rows, (task + 1) * kTask); ++i)
      for (int64_t c = 0; c < block.classes; c += Chunk<T>::width(maths)) {
        chunk.at(c);
        if (maths.fold == ClassFold::kRowLse)
          fold_row_lse(maths, chunk, i, z.data(), top[i], state.sum[i], own);
        else
          fold_row_squares(chunk, i, z.data(), state.sum[i], own);
      }
  });
}

// ---- folds by class: a task owns some columns, over all rows ----

// The log-sum-exps of a chunk's classes over groups of rows.
template <typename T>
struct ColumnSums {
  std::vector<T> z, top, shift, part;
  std::vector<double> sum;

  explicit ColumnSums(int64_t width)
      : z(kRows * width), top(width, -kInf<T>), shift(width, T(0)), part(width), sum(width, 0.0), width_(width) {}

  T* row(int64_t r) { return z.data() + r * width_; }

  void add(int64_t rows, int64_t count) {
    for (int64_t j = 0; j < count; ++j) part[j] = top[j];
    for (int64_t r = 0; r < rows; ++r) {
      const T* s = row(r);
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) part[j] = s[j] > part[j] ? s[j] : part[j];
    }
    for (int64_t j = 0; j < count; ++j) {
      if (part[j] == top[j]) continue;
      sum[j] = moved(sum[j], shift[j], shift_of(part[j]));
      top[j] = part[j];
      shift[j] = shift_of(part[j]);
    }
    std::fill_n(part.begin(), count, T(0));
    for (int64_t r = 0; r < rows; ++r) {
      const T* s = row(r);
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) part[j] += exp_of(s[j] - shift[j]);
    }
    for (int64_t j = 0; j < count; ++j) sum[j] += double(part[j]);
  }

 private:
  int64_t width_;
};

template <typename T>
void fold_columns(const ClassMaths& maths, const ClassBlock& block, const ClassState& state, T* own) {
  const int64_t width = Chunk<T>::width(maths);
  T* top = static_cast<T*>(state.top);
  parallel_for((block.classes + width - 1) / width, threads_of(maths, block), [&](int64_t task) {
    Chunk<T> chunk(maths, block);
    chunk.at(task * width);
    ColumnSums<T> sums(width);
    for (int64_t i0 = 0; i0 < block.rows; i0 += kRows) {
      const int64_t rows = std::min(kRows, block.rows - i0);
      for (int64_t r = 0; r < rows; ++r) {
        const T* p = chunk.pooled(i0 + r);
        logits(p, T(maths.scale), chunk.bias(i0 + r), chunk.count(), sums.row(r));
        const int64_t at = chunk.own(i0 + r);
        if (at < 0) continue;
        own[i0 + r] = p[at];
        sums.row(r)[at] = -kInf<T>;
      }
      sums.add(rows, chunk.count());
    }
    for (int64_t j = 0; j < chunk.count(); ++j)
      merge(top[task * width + j], state.sum[task * width + j], sums.top[j], sums.sum[j]);
  });
}

template <typename T>
void fold_any(const ClassMaths& maths, const ClassBlock& block, const ClassState& state, T* own) {
  maths.fold == ClassFold::kClassLse ? fold_columns(maths, block, state, own) : fold_rows(maths, block, state, own);
}

}  // namespace

void fold_classes(const ClassMaths& maths, const ClassBlock& block, const ClassState& state, void* own, bool is_double) {
  is_double ? fold_any(maths, block, state, static_cast<double*>(own))
            : fold_any(maths, block, state, static_cast<float*>(own));
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
