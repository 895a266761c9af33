// Losses of the soft maxima of an anchor's positives and of its negatives.
#pragma once

#include <cstdint>
#include <vector>

#include "pair_row.h"

namespace pml_fast {
namespace PML_FAST_ISA {

template <typename T>
struct MultiSimilarity : OneTerm {
  using Fold = AffineLogit<T>;
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
    row.back[0] = std::exp(neg.level - soft_neg) / beta;
  }
};

template <typename T>
struct Circle : OneTerm {
  using Fold = CircleLogit<T>;
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
    row.back[0] = weight * std::exp(neg.level - log_neg);
  }
};

template <typename T>
struct GeneralizedLiftedStructure : OneTerm {
  using Fold = AffineLogit<T>;
  T neg_margin, pos_margin, sign;
  GeneralizedLiftedStructure(const std::vector<double>& p, double sgn, const std::vector<Limits>&)
      : neg_margin(T(p.at(0))), pos_margin(T(p.at(1))), sign(T(sgn)) {}
  Fold fold() const { return {sign, -sign * neg_margin}; }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    int64_t n = 0;
    const auto logit = [&](T s) { return sign * (pos_margin - s); };
    const T log_pos = log_sum_exp(pos, logit, n), log_neg = neg.log_sum();
    const bool some = log_neg != minus_infinity<T>();
    const T total = (n > 0 ? log_pos : T(0)) + (some ? log_neg : T(0));
    row.count[0] = T(1);
    row.value[0] = relu(total);
    if (total <= T(0)) return;
    for (int64_t k = 0; k < pos.count; ++k)
      if (pos.keeps(k)) pos.q[k] = -sign * std::exp(logit(pos.s[k]) - log_pos);
    if (some) row.back[0] = std::exp(neg.level - log_neg);
  }
};

// The log-sum-exp of the negatives of both ends of a positive pair; d(value)/d(log-sum-exp) is kept apart for the two.
template <typename T>
struct LiftedStructure : OneTerm {
  static constexpr bool kNeighbours = true;
  using Fold = AffineLogit<T>;
  T neg_margin, pos_margin, sign;
  Limits limits;
  LiftedStructure(const std::vector<double>& p, double sgn, const std::vector<Limits>& l)
      : neg_margin(T(p.at(0))), pos_margin(T(p.at(1))), sign(T(sgn)), limits(l.at(0)) {}
  Fold fold() const { return {sign, -sign * neg_margin}; }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    const T own = neg.log_sum();
    for (int64_t k = 0; k < pos.count; ++k) {
      if (!pos.keeps(k)) continue;
      const T other = pos.other != nullptr ? pos.other[k] : minus_infinity<T>();
      const T both = log_add_exp(own, other);
      const bool some = both != minus_infinity<T>();
      const T beyond = relu((some ? both : T(0)) + sign * (pos_margin - pos.s[k])), loss = beyond * beyond / T(2);
      if (!inside(limits, loss)) continue;
      row.value[0] += loss;
      row.count[0] += T(1);
      pos.q[k] = -sign * beyond;
      if (!some) continue;
      row.back[0] += beyond * std::exp(own - both);
      pos.back[k] = beyond * std::exp(other - both);
    }
  }
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
