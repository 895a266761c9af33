#include "pair_exponents.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "pairs_of_rows.h"
#include "row_tasks.h"
#include "unit_rows.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

// Rows, or pairs, of a task.
constexpr int64_t kTask = 64;

// The rows of a set as they are compared.
template <typename T>
struct Units {
  Units(const void* rows, int64_t count, int64_t d, bool normalize, int threads) : d(d), rows(static_cast<const T*>(rows)) {
    if (!normalize) return;
    unit.resize(count * d);
    norm.resize(count);
    for_rows(0, count, kTask, threads,
             [&](int64_t r) { norm[r] = divide_by_norm(this->rows + r * d, d, unit.data() + r * d); });
  }

  const T* row(int64_t r) const { return (unit.empty() ? rows : unit.data()) + r * d; }

  // The gradient by a row, given that by its unit row, in its place.
  void back(int64_t r, T* grad) const {
    if (!unit.empty()) undivided_gradient(grad, row(r), norm[r], d, grad);
  }

  int64_t d;
  const T* rows;
  std::vector<T> unit, norm;
};

template <typename T>
class Exponents {
 public:
  explicit Exponents(const ExponentPairs& pairs)
      : p_(pairs),
        d_(pairs.d),
        threads_(pairs.count * pairs.d < 32768 ? 1 : pairs.threads),
        by_sum_(static_cast<T>(4 * pairs.slope)),
        by_product_(static_cast<T>(2 * (1 + pairs.slope))),
        x_(pairs.x, pairs.n, d_, pairs.normalize, threads_) {
    if (p_.y != nullptr) y_.emplace(pairs.y, pairs.m, d_, pairs.normalize, threads_);
  }

  void write(T* out) const {
    for_rows(0, p_.count, kTask, threads_, [&](int64_t k) {
      const T *a = x_.row(p_.i[k]), *p = columns().row(p_.j[k]);
      T* to = out + k * (d_ + 1);
#pragma omp simd
      for (int64_t c = 0; c < d_; ++c) to[c] = by_sum_ * (a[c] + p[c]);
      to[d_] = by_product_ * dot(a, p, d_);
    });
  }

  void gradients(const T* grad, T* dx, T* dy) const {
    const PairsOfRows as_anchor(p_.i, p_.count, p_.n), as_positive(p_.j, p_.count, rows_of_columns());
    if (dx != nullptr)
      for_rows(0, p_.n, kTask, threads_, [&](int64_t r) {
        T* to = dx + r * d_;
        std::fill_n(to, d_, T(0));
        add(as_anchor, r, p_.j, columns(), grad, to);
        if (p_.y == nullptr) add(as_positive, r, p_.i, x_, grad, to);
        x_.back(r, to);
      });
    if (dy != nullptr)
      for_rows(0, p_.m, kTask, threads_, [&](int64_t r) {
        T* to = dy + r * d_;
        std::fill_n(to, d_, T(0));
        add(as_positive, r, p_.i, x_, grad, to);
        columns().back(r, to);
      });
  }

  double by_slope(const T* grad) const {
    double sum = 0;
    for (int64_t k = 0; k < p_.count; ++k) {
      const T *a = x_.row(p_.i[k]), *p = columns().row(p_.j[k]), *g = grad + k * (d_ + 1);
      sum += 4 * static_cast<double>(dot(g, a, d_) + dot(g, p, d_)) + 2 * static_cast<double>(g[d_] * dot(a, p, d_));
    }
    return sum;
  }

 private:
  const Units<T>& columns() const { return p_.y == nullptr ? x_ : *y_; }
  int64_t rows_of_columns() const { return p_.y == nullptr ? p_.n : p_.m; }

  // What the pairs of row r give to it; `partner` names the other row of each.
  void add(const PairsOfRows& list, int64_t r, const int64_t* partner, const Units<T>& others, const T* grad, T* to) const {
    for (int64_t q = list.first[r]; q < list.first[r + 1]; ++q) {
      const int64_t k = list.place[q];
      const T *g = grad + k * (d_ + 1), *other = others.row(partner[k]);
      const T product = by_product_ * g[d_];
#pragma omp simd
      for (int64_t c = 0; c < d_; ++c) to[c] += by_sum_ * g[c] + product * other[c];
    }
  }

  const ExponentPairs& p_;
  int64_t d_;
  int threads_;
  T by_sum_, by_product_;
  Units<T> x_;
  std::optional<Units<T>> y_;
};

template <typename T>
double gradients(const ExponentPairs& pairs, const void* grad, void* dx, void* dy) {
  const Exponents<T> exponents(pairs);
  const T* own = static_cast<const T*>(grad);
  exponents.gradients(own, static_cast<T*>(dx), static_cast<T*>(dy));
  return exponents.by_slope(own);
}

}  // namespace

void pair_exponents(const ExponentPairs& pairs, void* out, bool is_double) {
  is_double ? Exponents<double>(pairs).write(static_cast<double*>(out))
            : Exponents<float>(pairs).write(static_cast<float*>(out));
}

double pair_exponent_gradients(const ExponentPairs& pairs, const void* grad, void* dx, void* dy, bool is_double) {
  return is_double ? gradients<double>(pairs, grad, dx, dy) : gradients<float>(pairs, grad, dx, dy);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
