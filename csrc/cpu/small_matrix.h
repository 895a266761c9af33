// Products of matrices that fit the caches, without the fixed costs of a library's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "../engine/math.h"
#include "../runtime/parallel.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// A matrix by the distances between its rows and between its columns.
template <typename T>
struct Strided {
  const T* at;
  int64_t row, column;

  const T& operator()(int64_t i, int64_t j) const { return at[i * row + j * column]; }
};

// A block of the product that stays in registers: some rows, of two vectors each, in half of the registers there are.
#if defined(__AVX512F__)
constexpr int64_t kTall = 8, kWideBytes = 128;
#elif defined(__AVX2__)
constexpr int64_t kTall = 4, kWideBytes = 64;
#else
constexpr int64_t kTall = 4, kWideBytes = 32;
#endif

// The right factor of a product, copied into panels of a block's width; the last one is filled up with zeros.
template <typename T>
class Panels {
 public:
  static constexpr int64_t kWide = kWideBytes / sizeof(T);

  Panels(const Strided<T>& b, int64_t inner, int64_t cols, int threads)
      : inner_(inner), cols_(cols), data_(new T[count() * inner * kWide]) {
    parallel_for(count(), inner * cols < (1 << 16) ? 1 : threads, [&](int64_t panel) { copy(b, panel); });
  }

  int64_t inner() const { return inner_; }
  int64_t cols() const { return cols_; }
  int64_t count() const { return (cols_ + kWide - 1) / kWide; }
  int64_t width(int64_t panel) const { return std::min(kWide, cols_ - panel * kWide); }
  const T* panel(int64_t index) const { return data_.get() + index * inner_ * kWide; }

 private:
  void copy(const Strided<T>& b, int64_t panel) {
    const int64_t first = panel * kWide, wide = width(panel);
    T* to = data_.get() + panel * inner_ * kWide;
    if (wide < kWide) std::fill_n(to, inner_ * kWide, T(0));
    if (b.column == 1) {
      for (int64_t k = 0; k < inner_; ++k) std::copy_n(&b(k, first), wide, to + k * kWide);
      return;
    }
    // Some rows at a time, so that what is written stays in the first-level cache.
    constexpr int64_t kDeep = 64;
    for (int64_t k0 = 0; k0 < inner_; k0 += kDeep)
      for (int64_t c = 0; c < wide; ++c)
        for (int64_t k = k0; k < std::min(inner_, k0 + kDeep); ++k) to[k * kWide + c] = b(k, first + c);
  }

  int64_t inner_, cols_;
  std::unique_ptr<T[]> data_;
};

// The rows of a block (of which `tall` exist) of a product with one panel.
template <typename T>
void multiply_block(const Strided<T>& a, int64_t first, int64_t tall, const T* panel, int64_t inner, int64_t wide, T* out,
                    int64_t ldo) {
  constexpr int64_t kWide = Panels<T>::kWide;
  const T* row[kTall];
  for (int64_t r = 0; r < kTall; ++r) row[r] = &a(first + std::min(r, tall - 1), 0);
  T sum[kTall][kWide] = {};
  for (int64_t k = 0; k < inner; ++k)
    for (int64_t r = 0; r < kTall; ++r) {
      const T own = row[r][k * a.column];
#pragma omp simd
      for (int64_t c = 0; c < kWide; ++c) sum[r][c] += own * panel[k * kWide + c];
    }
  for (int64_t r = 0; r < tall; ++r) std::copy_n(sum[r], wide, out + r * ldo);
}

// out[i, j] = sum_k a[i, k] b[k, j], ldo apart.
template <typename T>
void multiply(const Strided<T>& a, int64_t rows, const Panels<T>& b, T* out, int64_t ldo, int threads) {
  constexpr int64_t kRows = 16;
  const bool few = rows * b.inner() * b.cols() < (1 << 20);
  parallel_for((rows + kRows - 1) / kRows, few ? 1 : threads, [&](int64_t task) {
    const int64_t last = std::min(rows, (task + 1) * kRows);
    for (int64_t p = 0; p < b.count(); ++p)
      for (int64_t i = task * kRows; i < last; i += kTall)
        multiply_block(a, i, std::min(kTall, last - i), b.panel(p), b.inner(), b.width(p), out + i * ldo + p * Panels<T>::kWide,
                       ldo);
  });
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
