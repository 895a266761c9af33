#include "small_classes.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "small_matrix.h"
#include "unit_rows.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

template <typename T>
class ClassStep {
 public:
  ClassStep(const SmallClasses& batch, const ClassMaths& maths, T* state)
      : b_(batch),
        maths_(maths),
        m_(batch.classes * maths.centers),
        weights_{static_cast<const T*>(batch.weights), batch.weight_step, batch.feature_step},
        rows_(state),
        row_norm_(rows_ + b_.n * b_.d),
        norm_(row_norm_ + b_.n),
        products_(norm_ + m_),
        lift_(b_.squared ? b_.n : 0, T(-1)) {}

  void scores(T* others, T* own, T* norms) {
    prepare_rows();
    if (has_norms() || norms != nullptr)
      class_norms(b_.weights, m_, b_.d, b_.weight_step, b_.feature_step, norm_, b_.threads, kDouble);
    divide();
    const Panels<T> columns({weights_.at, weights_.column, weights_.row}, b_.d, m_, b_.threads);
    multiply({rows_, b_.d, 1}, b_.n, columns, products_, m_, b_.threads);
    const int64_t folded = maths_.fold == ClassFold::kClassLse ? b_.classes : b_.n;
    std::vector<T> top(folded, -std::numeric_limits<T>::infinity());
    std::vector<double> sum(folded, 0.0);
    fold_classes(maths_, block(), {top.data(), sum.data()}, own, kDouble);
    for (int64_t i = 0; i < folded; ++i) {
      const double shift = std::isinf(top[i]) ? 0.0 : double(top[i]);
      others[i] = T(maths_.fold == ClassFold::kRowSquares ? sum[i] : std::log(sum[i]) + shift);
    }
    for (int64_t i = 0; norms != nullptr && i < b_.n; ++i) norms[i] = norm_[b_.target[i]];
  }

  void grads(const ClassSlopes& slopes, const T* norms, T* dx, T* dw, int64_t weight_step, int64_t feature_step) {
    divide();
    const bool unit = dw != nullptr && b_.unit_weights, lifted = dw != nullptr && b_.squared && !b_.unit_weights;
    std::vector<T> c(b_.n * m_), along(unit ? m_ : 0, T(0)), lifts(lifted ? m_ : 0, T(0));
    class_coefficients(maths_, block(), slopes, c.data(), m_, unit ? along.data() : nullptr, lifted ? lifts.data() : nullptr,
                       kDouble);
    if (dx != nullptr) row_gradient(c.data(), dx);
    if (dw == nullptr) return;
    weight_products(c.data(), dw, weight_step, feature_step);
    std::vector<T> factor(m_, T(0));
    for (int64_t j = 0; unit && j < m_; ++j)
      factor[j] = norm_[j] > T(kNormEps) ? -along[j] * (inverse_[j] * inverse_[j]) : T(0);
    for (int64_t j = 0; lifted && j < m_; ++j) factor[j] = T(2) * lifts[j];
    for (int64_t i = 0; norms != nullptr && i < b_.n; ++i) {
      const int64_t j = b_.target[i];
      if (norm_[j] > T(0)) factor[j] += norms[i] / norm_[j];
    }
    if (unit || lifted || norms != nullptr) add_weights(factor.data(), dw, weight_step, feature_step);
  }

 private:
  static constexpr bool kDouble = std::is_same_v<T, double>;

  bool has_norms() const { return b_.unit_weights || b_.squared; }

  void prepare_rows() {
    const T* x = static_cast<const T*>(b_.x);
    for (int64_t i = 0; i < b_.n; ++i) {
      T* row = rows_ + i * b_.d;
      if (b_.unit_rows)
        row_norm_[i] = divide_by_norm(x + i * b_.d, b_.d, row);
      else
        std::copy_n(x + i * b_.d, b_.d, row);
    }
    // 2 <x, w> - |w|^2: the row, doubled, and -1 times the square.
    for (int64_t k = 0; b_.squared && k < b_.n * b_.d; ++k) rows_[k] *= T(2);
  }

  void divide() {
    inverse_.resize(b_.unit_weights ? m_ : 0);
    for (size_t j = 0; j < inverse_.size(); ++j) inverse_[j] = T(1) / (norm_[j] < T(kNormEps) ? T(kNormEps) : norm_[j]);
    square_.resize(b_.squared ? m_ : 0);
    for (size_t j = 0; j < square_.size(); ++j) {
      const T size = b_.unit_weights ? norm_[j] * inverse_[j] : norm_[j];
      square_[j] = size * size;
    }
  }

  ClassBlock block() const {
    return {products_,      m_,        b_.n,    0,         b_.classes, or_null(inverse_), or_null(square_),
            or_null(lift_), b_.target, b_.bias, b_.threads};
  }

  static const T* or_null(const std::vector<T>& v) { return v.empty() ? nullptr : v.data(); }

  void row_gradient(const T* c, T* dx) {
    const Panels<T> columns(weights_, m_, b_.d, b_.threads);
    multiply({c, m_, 1}, b_.n, columns, dx, b_.d, b_.threads);
    if (b_.squared)
      for (int64_t k = 0; k < b_.n * b_.d; ++k) dx[k] *= T(2);
    if (!b_.unit_rows) return;
    std::vector<T> grad(b_.d), unit(b_.d);
    for (int64_t i = 0; i < b_.n; ++i) {
      const T* row = rows_ + i * b_.d;
      std::copy_n(dx + i * b_.d, b_.d, grad.data());
      for (int64_t k = 0; k < b_.d; ++k) unit[k] = b_.squared ? row[k] / T(2) : row[k];
      undivided_gradient(grad.data(), unit.data(), row_norm_[i], b_.d, dx + i * b_.d);
    }
  }

  // In the order of the gradient's memory.
  void weight_products(const T* c, T* dw, int64_t weight_step, int64_t feature_step) {
    if (feature_step == 1) {
      const Panels<T> rows({rows_, b_.d, 1}, b_.n, b_.d, b_.threads);
      multiply({c, 1, m_}, m_, rows, dw, weight_step, b_.threads);
    } else {
      const Panels<T> columns({c, m_, 1}, b_.n, m_, b_.threads);
      multiply({rows_, 1, b_.d}, b_.d, columns, dw, feature_step, b_.threads);
    }
  }

  void add_weights(const T* factor, T* dw, int64_t weight_step, int64_t feature_step) {
    if (feature_step == 1) {
      for (int64_t j = 0; j < m_; ++j) {
        const T own = factor[j];
        if (own == T(0)) continue;
        for (int64_t k = 0; k < b_.d; ++k) dw[j * weight_step + k] += own * weights_(j, k);
      }
      return;
    }
    for (int64_t k = 0; k < b_.d; ++k)
      for (int64_t j = 0; j < m_; ++j) dw[k * feature_step + j] += factor[j] * weights_(j, k);
  }

  const SmallClasses& b_;
  const ClassMaths& maths_;
  int64_t m_;
  Strided<T> weights_;
  // The state.
  T *rows_, *row_norm_, *norm_, *products_;
  std::vector<T> lift_, inverse_, square_;
};

}  // namespace

void small_class_scores(const SmallClasses& batch, const ClassMaths& maths, void* state, void* others, void* own, void* norms,
                        bool is_double) {
  const auto run = [&](auto* memory) {
    using T = std::remove_pointer_t<decltype(memory)>;
    ClassStep<T>(batch, maths, memory).scores(static_cast<T*>(others), static_cast<T*>(own), static_cast<T*>(norms));
  };
  is_double ? run(static_cast<double*>(state)) : run(static_cast<float*>(state));
}

void small_class_grads(const SmallClasses& batch, const ClassMaths& maths, void* state, const ClassSlopes& slopes,
                       const void* norms, void* dx, void* dw, int64_t weight_step, int64_t feature_step, bool is_double) {
  const auto run = [&](auto* memory) {
    using T = std::remove_pointer_t<decltype(memory)>;
    ClassStep<T>(batch, maths, memory)
        .grads(slopes, static_cast<const T*>(norms), static_cast<T*>(dx), static_cast<T*>(dw), weight_step, feature_step);
  };
  is_double ? run(static_cast<double*>(state)) : run(static_cast<float*>(state));
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
