// Losses of what share an anchor's positives have among the exponentials of all its pairs.
#pragma once

#include <cstdint>
#include <vector>

#include "pair_row.h"

namespace pml_fast {
namespace PML_FAST_ISA {

template <typename T>
struct SupCon : OneTerm {
  using Fold = AffineLogit<T>;
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
    row.back[0] = std::exp(neg.level - log_all);
  }
};

template <typename T>
struct LogSumExp : OneTerm {
  using Fold = AffineLogit<T>;
  T scale;
  LogSumExp(const std::vector<double>& p, double sign, const std::vector<Limits>&) : scale(T(sign / p.at(0))) {}
  Fold fold() const { return {scale, T(0)}; }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    int64_t n = 0;
    const T log_all = log_add_exp(log_sum_exp(pos, [&](T s) { return scale * s; }, n), neg.log_sum());
    if (log_all == minus_infinity<T>()) return;
    for (int64_t k = 0; k < pos.count; ++k)
      if (pos.keeps(k)) pos.q[k] = scale * std::exp(scale * pos.s[k] - log_all);
    row.value[0] = log_all;
    row.count[0] = T(1);
    row.back[0] = std::exp(neg.level - log_all);
  }
};

// softplus(log-sum-exp of the negatives' logits - curve(s)), one loss a positive pair.
template <typename T, typename Curve>
void finish_softmax_pairs(const Positives<T>& pos, const NegativeState<T>& neg, const Limits& limits, const Curve& curve,
                          Row<T>& row) {
  const T log_neg = neg.log_sum();
  T total = 0;
  for (int64_t k = 0; k < pos.count; ++k) {
    if (!pos.keeps(k)) continue;
    const T gap = log_neg - curve.value(pos.s[k]);
    const T loss = gap == minus_infinity<T>() ? T(0) : softplus(gap);
    if (!inside(limits, loss)) continue;
    const T weight = sigmoid(gap);
    row.value[0] += loss;
    row.count[0] += T(1);
    total += weight;
    pos.q[k] = -weight * curve.slope(pos.s[k]);
  }
  row.back[0] = log_neg == minus_infinity<T>() ? T(0) : total * std::exp(neg.level - log_neg);
}

template <typename T>
struct NTXent : OneTerm {
  using Fold = AffineLogit<T>;
  T scale;
  Limits limits;
  NTXent(const std::vector<double>& p, double sign, const std::vector<Limits>& l) : scale(T(sign / p.at(0))), limits(l.at(0)) {}
  Fold fold() const { return {scale, T(0)}; }
  T value(T s) const { return scale * s; }
  T slope(T) const { return scale; }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    finish_softmax_pairs(pos, neg, limits, *this, row);
  }
};

template <typename T>
struct TupletMargin : OneTerm {
  using Fold = AffineLogit<T>;
  T cosine, sine, scale;
  Limits limits;
  TupletMargin(const std::vector<double>& p, double, const std::vector<Limits>& l)
      : cosine(T(std::cos(p.at(0)))), sine(T(std::sin(p.at(0)))), scale(T(p.at(1))), limits(l.at(0)) {}
  Fold fold() const { return {scale, T(0)}; }
  // scale cos(acos(s) - margin); an angle of 0 has a sine without a slope, not an infinite one.
  T value(T s) const {
    const T square = T(1) - s * s;
    return scale * (s * cosine + (square > T(0) ? std::sqrt(square) : T(0)) * sine);
  }
  T slope(T s) const {
    const T square = T(1) - s * s;
    return scale * (cosine - (square > T(0) ? s / std::sqrt(square) : T(0)) * sine);
  }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    finish_softmax_pairs(pos, neg, limits, *this, row);
  }
};

template <typename T>
struct NCA : OneTerm {
  using Fold = AffineLogit<T>;
  T scale;
  NCA(const std::vector<double>& p, double sign, const std::vector<Limits>&) : scale(T(sign * p.at(0))) {}
  Fold fold() const { return {scale, T(0)}; }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    int64_t n = 0;
    const T log_pos = log_sum_exp(pos, [&](T s) { return scale * s; }, n), log_neg = neg.log_sum();
    if (n == 0) return;
    row.count[0] = T(1);
    if (log_neg == minus_infinity<T>()) {
      // Only a positive that is not a number is seen.
      row.value[0] = log_pos == log_pos ? T(0) : log_pos;
      return;
    }
    const T weight = sigmoid(log_neg - log_pos);
    row.value[0] = softplus(log_neg - log_pos);
    for (int64_t k = 0; k < pos.count; ++k)
      if (pos.keeps(k)) pos.q[k] = -scale * weight * std::exp(scale * pos.s[k] - log_pos);
    row.back[0] = weight * std::exp(neg.level - log_neg);
  }
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
