// What each pair loss folds over an anchor's negatives, and how a row's loss and derivatives follow from its state.
// The twin of pml_fast/engine/specs: same names, same parameter order.
#pragma once

#include <cstdint>
#include <vector>

#include "limits.h"
#include "math.h"

namespace pml_fast {
namespace PML_FAST_ISA {

template <typename T>
constexpr T minus_infinity() {
  return -std::numeric_limits<T>::infinity();
}

// ---- folds over the negatives -----------------------------------------------------------------------------------------------

// Sum of exp(logit - shift), logit = a s + b.
template <typename T>
struct AffineLogit {
  T a, b;
  T logit(T s) const { return a * s + b; }
  T slope(T) const { return a; }
};

// Circle loss: logit = gamma relu(s + m) (s - m); the relu is a constant to the gradient.
template <typename T>
struct CircleLogit {
  T gamma, m;
  T logit(T s) const { return gamma * relu(s + m) * (s - m); }
  T slope(T s) const { return gamma * relu(s + m); }
};

// Sum and number of relu(a s + b), counting only losses inside (low, high).
template <typename T>
struct HingeFold {
  T a, b, low, high;
  T loss(T s) const { return relu(a * s + b); }
  bool kept(T l) const { return !((l <= low) | (l >= high)); }
};

// ---- finishing a row
// ---------------------------------------------------------------------------------------------------------

// An anchor's positives: their scores, and where to write d(row value)/d(score).
template <typename T>
struct Positives {
  const T* s;
  T* q;
  int64_t count, self;  // slots; the slot of the anchor itself, or -1
  T low, high;          // closed interval a miner leaves

  // Written so that a NaN score is kept, and seen.
  bool keeps(int64_t k) const { return k != self && !(s[k] < low) && !(s[k] > high); }
};

// What an anchor's negatives left: log of the summed exponentials, or a hinge's sum and count.
template <typename T>
struct NegativeState {
  T first, second, shift;
  T log_sum() const { return first == T(0) ? minus_infinity<T>() : std::log(first) + shift; }
};

// A finished row: value and count of each of up to two terms, and the factor of the negatives' exponentials (or hinges).
template <typename T>
struct Row {
  T value[2] = {0, 0}, count[2] = {0, 0}, alpha = 0;
};

// Whether a pair's loss is counted. Written so that a NaN is, and is seen.
template <typename T>
bool inside(const Limits& limits, T loss) {
  return !((loss <= static_cast<T>(limits.low)) | (loss >= static_cast<T>(limits.high)));
}

template <typename T, typename Logit>
T log_sum_exp(const Positives<T>& pos, Logit logit, int64_t& n) {
  T top = minus_infinity<T>();
  n = 0;
  for (int64_t k = 0; k < pos.count; ++k)
    if (pos.keeps(k)) {
      const T l = logit(pos.s[k]);
      top = l > top || l != l ? l : top;
      ++n;
    }
  if (n == 0 || top == minus_infinity<T>()) return minus_infinity<T>();
  T sum = 0;
  for (int64_t k = 0; k < pos.count; ++k)
    if (pos.keeps(k)) sum += std::exp(logit(pos.s[k]) - top);
  return top + std::log(sum);
}

template <typename T>
T log_add_exp(T a, T b) {
  if (a == minus_infinity<T>()) return b;
  if (b == minus_infinity<T>()) return a;
  const T top = a > b ? a : b;
  return top + std::log1p(std::exp(-std::abs(a - b)));
}

// Each spec: the fold of its negatives, the term its positives and negatives weigh with, and finish().

template <typename T>
struct SupCon {
  using Fold = AffineLogit<T>;
  static constexpr int kTerms = 1, kPosTerm = 0, kNegTerm = 0;
  T scale;
  SupCon(const std::vector<double>& p, double sign, const std::vector<Limits>&) : scale(T(sign / p.at(0))) {}
  Fold fold() const { return {scale, T(0)}; }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    int64_t n = 0;
    const T log_pos = log_sum_exp(pos, [&](T s) { return scale * s; }, n);
    row.count[0] = T(1);
    if (n == 0) return;
    const T log_all = log_add_exp(log_pos, neg.log_sum());
    T mean = 0;
    for (int64_t k = 0; k < pos.count; ++k) {
      if (!pos.keeps(k)) continue;
      mean += scale * pos.s[k];
      pos.q[k] = scale * (std::exp(scale * pos.s[k] - log_all) - T(1) / T(n));
    }
    row.value[0] = log_all - mean / T(n);
    row.alpha = std::exp(neg.shift - log_all);
  }
};

template <typename T>
struct NTXent {
  using Fold = AffineLogit<T>;
  static constexpr int kTerms = 1, kPosTerm = 0, kNegTerm = 0;
  T scale;
  Limits limits;
  NTXent(const std::vector<double>& p, double sign, const std::vector<Limits>& l) : scale(T(sign / p.at(0))), limits(l.at(0)) {}
  Fold fold() const { return {scale, T(0)}; }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    const T log_neg = neg.log_sum();
    T total = 0;
    for (int64_t k = 0; k < pos.count; ++k) {
      if (!pos.keeps(k)) continue;
      const T gap = log_neg - scale * pos.s[k];
      const T loss = gap == minus_infinity<T>() ? T(0) : softplus(gap);
      if (!inside(limits, loss)) continue;
      const T weight = sigmoid(gap);
      row.value[0] += loss;
      row.count[0] += T(1);
      total += weight;
      pos.q[k] = -scale * weight;
    }
    row.alpha = log_neg == minus_infinity<T>() ? T(0) : total * std::exp(neg.shift - log_neg);
  }
};

template <typename T>
struct MultiSimilarity {
  using Fold = AffineLogit<T>;
  static constexpr int kTerms = 1, kPosTerm = 0, kNegTerm = 0;
  T alpha, beta, base, sign;
  MultiSimilarity(const std::vector<double>& p, double sgn, const std::vector<Limits>&)
      : alpha(T(p.at(0))), beta(T(p.at(1))), base(T(p.at(2))), sign(T(sgn)) {}
  Fold fold() const { return {sign * beta, -sign * beta * base}; }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    int64_t n = 0;
    const auto logit = [&](T s) { return -sign * alpha * (s - base); };
    const T log_pos = log_sum_exp(pos, logit, n), log_neg = neg.log_sum();
    const T soft_pos = n ? softplus(log_pos) : T(0);
    const T soft_neg = log_neg == minus_infinity<T>() ? T(0) : softplus(log_neg);
    for (int64_t k = 0; k < pos.count; ++k)
      if (pos.keeps(k)) pos.q[k] = -sign * std::exp(logit(pos.s[k]) - soft_pos);
    row.value[0] = soft_pos / alpha + soft_neg / beta;
    row.count[0] = T(1);
    row.alpha = std::exp(neg.shift - soft_neg) / beta;
  }
};

template <typename T>
struct Circle {
  using Fold = CircleLogit<T>;
  static constexpr int kTerms = 1, kPosTerm = 0, kNegTerm = 0;
  T m, gamma;
  Circle(const std::vector<double>& p, double, const std::vector<Limits>&) : m(T(p.at(0))), gamma(T(p.at(1))) {}
  Fold fold() const { return {gamma, m}; }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    int64_t n = 0;
    const auto slope = [&](T s) { return -gamma * relu(T(1) + m - s); };
    const auto logit = [&](T s) { return slope(s) * (s - (T(1) - m)); };
    const T log_pos = log_sum_exp(pos, logit, n), log_neg = neg.log_sum();
    row.count[0] = T(1);
    if (n == 0 || log_neg == minus_infinity<T>()) return;
    const T weight = sigmoid(log_pos + log_neg);
    for (int64_t k = 0; k < pos.count; ++k)
      if (pos.keeps(k)) pos.q[k] = weight * std::exp(logit(pos.s[k]) - log_pos) * slope(pos.s[k]);
    row.value[0] = softplus(log_pos + log_neg);
    row.alpha = weight * std::exp(neg.shift - log_neg);
  }
};

template <typename T>
struct Contrastive {
  using Fold = HingeFold<T>;
  static constexpr int kTerms = 2, kPosTerm = 0, kNegTerm = 1;
  T pos_margin, neg_margin, sign;
  Limits pos_limits, neg_limits;
  Contrastive(const std::vector<double>& p, double sgn, const std::vector<Limits>& l)
      : pos_margin(T(p.at(0))), neg_margin(T(p.at(1))), sign(T(sgn)), pos_limits(l.at(0)), neg_limits(l.at(1)) {}
  Fold fold() const { return {sign, -sign * neg_margin, T(neg_limits.low), T(neg_limits.high)}; }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    for (int64_t k = 0; k < pos.count; ++k) {
      if (!pos.keeps(k)) continue;
      const T loss = relu(sign * (pos_margin - pos.s[k]));
      if (!inside(pos_limits, loss)) continue;
      row.value[0] += loss;
      row.count[0] += T(1);
      pos.q[k] = loss > T(0) ? -sign : T(0);
    }
    row.value[1] = neg.first;
    row.count[1] = neg.second;
    row.alpha = T(1);
  }
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
