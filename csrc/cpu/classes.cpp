#include "classes.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "../engine/math.h"
#include "../runtime/parallel.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

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
      for (int64_t j = 0; j < n; ++j) scores_[j * k + q] = share[j];
    }
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
    std::fill_n(top, n, -kInf<T>);
    for (int64_t q = 0; q < k; ++q) {
      T* s = turned_.data() + q * n;
      for (int64_t j = 0; j < n; ++j) s[j] = scores_[j * k + q];
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

int threads_of(const ClassMaths& maths, const ClassBlock& block) {
  return block.rows * block.classes * maths.centers < kFewest ? 1 : block.threads;
}

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

// ---- the way back: a task owns some columns, over all rows ----

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

// Adds rows to sums over columns: a few in the working type, all of them in double.
template <typename T>
class Gather {
 public:
  Gather(void* out, int64_t first, int64_t count)
      : out_(out == nullptr ? nullptr : static_cast<T*>(out) + first), count_(out == nullptr ? 0 : count) {
    part_.assign(count_, T(0));
    sum_.assign(count_, 0.0);
  }

  bool wanted() const { return out_ != nullptr; }
  T* part() { return part_.data(); }

  void row_done() {
    if (++rows_ % kRows == 0) flush();
  }

  void finish() {
    flush();
    for (int64_t j = 0; j < count_; ++j) out_[j] += T(sum_[j]);
  }

 private:
  void flush() {
    for (int64_t j = 0; j < count_; ++j) {
      sum_[j] += double(part_[j]);
      part_[j] = T(0);
    }
  }

  T* out_;
  int64_t count_, rows_ = 0;
  std::vector<T> part_;
  std::vector<double> sum_;
};

template <typename T>
void coefficients(const ClassMaths& maths, const ClassBlock& block, const ClassSlopes& slopes, T* out, int64_t ld_out,
                  void* along, void* lifted) {
  const int64_t width = Chunk<T>::width(maths);
  const bool by_class = maths.fold == ClassFold::kClassLse;
  const T *fold = static_cast<const T*>(slopes.fold), *weight = static_cast<const T*>(slopes.weight);
  const T* own = static_cast<const T*>(slopes.own);
  parallel_for((block.classes + width - 1) / width, threads_of(maths, block), [&](int64_t task) {
    Chunk<T> chunk(maths, block);
    chunk.at(task * width);
    const int64_t count = chunk.count(), columns = chunk.columns(), first = chunk.first_column();
    std::vector<T> c(count), shift(by_class ? count : 0), factor(by_class ? count : 0);
    for (int64_t j = 0; by_class && j < count; ++j) {
      shift[j] = slope_shift(fold[task * width + j], weight[task * width + j]);
      factor[j] = weight[task * width + j] * T(maths.scale);
    }
    Gather<T> alongs(along, first, columns), lifts(lifted, first, columns);
    const T* inverse = chunk.inverse();
    for (int64_t i = 0; i < block.rows; ++i) {
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
          const T d = h[j] * inverse[j];
          sums[j] += d * raw[j];
          to[j] = d;
        }
        alongs.row_done();
      } else if (inverse != nullptr) {
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) to[j] = h[j] * inverse[j];
      } else {
        std::copy_n(h, columns, to);
      }
    }
    alongs.finish();
    lifts.finish();
  });
}

// ---- norms ----

// Those of some weights, by one task.
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
  std::fill_n(norms, count, T(0));
  Gather<T> sums(norms, 0, count);
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
  for (int64_t j = 0; j < count; ++j) norms[j] = std::sqrt(norms[j]);
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

template <typename T>
void fold_any(const ClassMaths& maths, const ClassBlock& block, const ClassState& state, T* own) {
  maths.fold == ClassFold::kClassLse ? fold_columns(maths, block, state, own) : fold_rows(maths, block, state, own);
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

void fold_classes(const ClassMaths& maths, const ClassBlock& block, const ClassState& state, void* own, bool is_double) {
  is_double ? fold_any(maths, block, state, static_cast<double*>(own))
            : fold_any(maths, block, state, static_cast<float*>(own));
}

void class_coefficients(const ClassMaths& maths, const ClassBlock& block, const ClassSlopes& slopes, void* out, int64_t ld_out,
                        void* along, void* lifted, bool is_double) {
  is_double ? coefficients(maths, block, slopes, static_cast<double*>(out), ld_out, along, lifted)
            : coefficients(maths, block, slopes, static_cast<float*>(out), ld_out, along, lifted);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
