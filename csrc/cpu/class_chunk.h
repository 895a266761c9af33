// The scores of a row and some classes, as the sweeps over classes read them and write their gradients.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "../engine/math.h"
#include "../runtime/parallel.h"
#include "classes.h"

namespace pml_fast {
namespace PML_FAST_ISA {

constexpr int64_t kColumns = 512;  // columns of a row that are worked on at a time, in the first-level cache
constexpr int64_t kRows = 16;      // rows whose sums stay in the working type
constexpr int64_t kFewest = 1 << 14;

template <typename T>
constexpr T kInf = std::numeric_limits<T>::infinity();

// What a logit is reduced by before its exponential.
template <typename T>
T shift_of(T top) {
  return std::isinf(top) ? T(0) : top;
}

// A sum of exp(z - from) as one of exp(z - to): nothing stays nothing however far the two are apart.
template <typename T>
double moved(double sum, T from, T to) {
  return sum == 0.0 ? 0.0 : sum * std::exp(double(from) - double(to));
}

template <typename T>
void merge(T& top, double& sum, T other_top, double other_sum) {
  const T larger = other_top > top ? other_top : top;
  sum = moved(sum, shift_of(top), shift_of(larger)) + moved(other_sum, shift_of(other_top), shift_of(larger));
  top = larger;
}

template <typename T>
T largest(const T* z, int64_t count) {
  T top = -kInf<T>;
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < count; ++j) top = z[j] > top ? z[j] : top;
  return top;
}

template <typename T>
T exp_sum(const T* z, int64_t count, T shift) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < count; ++j) sum += exp_of(z[j] - shift);
  return sum;
}

// Calls body(k), with a constant of the type where k is 2, 3 or 4.
template <typename F>
void with_few(int64_t k, F&& body) {
  switch (k) {
    case 2:
      return body(std::integral_constant<int64_t, 2>{});
    case 3:
      return body(std::integral_constant<int64_t, 3>{});
    case 4:
      return body(std::integral_constant<int64_t, 4>{});
    default:
      return body(k);
  }
}

// Numbers of n classes with k centres each, class by class, to centre by centre. Where k is known a compiler turns them in
// registers.
template <typename T>
void by_center(const T* from, int64_t k, int64_t n, T* to) {
  const auto turn = [&](auto centers) {
    for (int64_t j = 0; j < n; ++j)
      for (int64_t q = 0; q < centers; ++q) to[q * n + j] = from[j * centers + q];
  };
  with_few(k, turn);
}

// And back.
template <typename T>
void by_class(const T* from, int64_t k, int64_t n, T* to) {
  const auto turn = [&](auto centers) {
    for (int64_t j = 0; j < n; ++j)
      for (int64_t q = 0; q < centers; ++q) to[j * centers + q] = from[q * n + j];
  };
  with_few(k, turn);
}

// The scores of one row and a chunk of classes, and the way back from the pooled ones.
template <typename T>
class Chunk {
 public:
  Chunk(const ClassMaths& maths, const ClassBlock& block)
      : maths_(maths),
        block_(block),
        scores_(width(maths) * maths.centers),
        share_(maths.pool == Pool::kSoft ? scores_.size() : 0),
        turned_(share_.size()),
        top_(maths.pool == Pool::kSoft ? width(maths) : 0),
        inverse_(top_.size()),
        pooled_(maths.pool == Pool::kSingle ? 0 : width(maths)),
        best_(maths.pool == Pool::kMax ? width(maths) : 0),
        sharpness_(T(maths.sharpness)) {}

  // Classes of a chunk.
  static int64_t width(const ClassMaths& maths) { return std::max<int64_t>(1, kColumns / maths.centers); }

  int64_t count() const { return c1_ - c0_; }
  int64_t columns() const { return count() * maths_.centers; }
  int64_t first_column() const { return c0_ * maths_.centers; }

  void at(int64_t c0) {
    c0_ = c0;
    c1_ = std::min(block_.classes, c0 + width(maths_));
  }

  // Where in the chunk the row's own class is, or -1.
  int64_t own(int64_t i) const {
    const int64_t c = block_.target[i] - block_.first - c0_;
    return c >= 0 && c < count() ? c : -1;
  }

  T lift(int64_t i) const { return block_.lift == nullptr ? T(0) : static_cast<const T*>(block_.lift)[i]; }
  T bias(int64_t i) const { return block_.bias == nullptr ? T(0) : static_cast<const T*>(block_.bias)[i]; }
  const T* products(int64_t i) const { return static_cast<const T*>(block_.products) + i * block_.ld + first_column(); }
  const T* inverse() const {
    return block_.inverse == nullptr ? nullptr : static_cast<const T*>(block_.inverse) + first_column();
  }

  const T* pooled(int64_t i) {
    score(i);
    if (maths_.pool == Pool::kSingle) return scores_.data();
    maths_.pool == Pool::kMax ? pool_max() : pool_soft();
    return pooled_.data();
  }

  // The derivatives by the scores of the row that was pooled last.
  const T* unpooled(const T* c) {
    if (maths_.pool == Pool::kSingle) return c;
    const int64_t k = maths_.centers;
    if (maths_.pool == Pool::kMax) {
      std::fill_n(scores_.begin(), columns(), T(0));
      for (int64_t j = 0; j < count(); ++j) scores_[j * k + best_[j]] = c[j];
      return scores_.data();
    }
    const int64_t n = count();
    const T *pooled = pooled_.data(), *inverse = inverse_.data();
    for (int64_t q = 0; q < k; ++q) {
      const T* s = turned_.data() + q * n;
      T* share = share_.data() + q * n;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) share[j] = share[j] * inverse[j] * (T(1) + sharpness_ * (s[j] - pooled[j])) * c[j];
    }
    by_class(share_.data(), k, n, scores_.data());
    return scores_.data();
  }

 private:
  void score(int64_t i) {
    const T *raw = products(i), *inv = inverse();
    T* s = scores_.data();
    const int64_t n = columns();
    if (inv == nullptr)
      std::copy_n(raw, n, s);
    else
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) s[j] = raw[j] * inv[j];
    if (block_.square == nullptr) return;
    const T* square = static_cast<const T*>(block_.square) + first_column();
    const T e = lift(i);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) s[j] += e * square[j];
  }

  // Of equal maxima the first; what is not a number is the largest, as torch has it. Without a branch, which would be guessed
  // wrong as often as not.
  void pool_max() {
    const int64_t k = maths_.centers, n = count();
    const T* s = scores_.data();
    T* top = pooled_.data();
    int32_t* best = best_.data();
    for (int64_t j = 0; j < n; ++j) top[j] = s[j * k];
    std::fill_n(best, n, 0);
    for (int64_t q = 1; q < k; ++q)
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        const T own = s[j * k + q];
        const bool better = !(own <= top[j]) & (top[j] == top[j]);
        best[j] = better ? int32_t(q) : best[j];
        top[j] = better ? own : top[j];
      }
  }

  // One centre of all classes at a time, so that what is done for each class is done for many at once.
  void pool_soft() {
    const int64_t k = maths_.centers, n = count();
    T *top = top_.data(), *sum = inverse_.data(), *mean = pooled_.data();
    by_center(scores_.data(), k, n, turned_.data());
    std::fill_n(top, n, -kInf<T>);
    for (int64_t q = 0; q < k; ++q) {
      const T* s = turned_.data() + q * n;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) top[j] = s[j] * sharpness_ > top[j] ? s[j] * sharpness_ : top[j];
    }
    std::fill_n(sum, n, T(0));
    std::fill_n(mean, n, T(0));
    for (int64_t q = 0; q < k; ++q) {
      const T* s = turned_.data() + q * n;
      T* share = share_.data() + q * n;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        const T part = exp_of(s[j] * sharpness_ - top[j]);
        share[j] = part;
        sum[j] += part;
        mean[j] += part * s[j];
      }
    }
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      sum[j] = T(1) / sum[j];
      mean[j] *= sum[j];
    }
  }

  const ClassMaths& maths_;
  const ClassBlock& block_;
  // Of a soft pool, centre by centre: the scores, what they weigh before it is divided by its sum; of each class the largest
  // and one over that sum.
  std::vector<T> scores_, share_, turned_, top_, inverse_, pooled_;
  std::vector<int32_t> best_;
  T sharpness_;
  int64_t c0_ = 0, c1_ = 0;
};
inline int threads_of(const ClassMaths& maths, const ClassBlock& block) {
  return block.rows * block.classes * maths.centers < kFewest ? 1 : block.threads;
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
