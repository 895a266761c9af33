// What each pair loss folds over an anchor's negatives, and how a row's loss and derivatives follow from its state.
// The twin of pml_fast/engine/specs: same names, same parameter order.
#pragma once

#include <cstdint>
#include <vector>

#include "limits.h"
#include "math.h"
#include "pair_folds.h"

namespace pml_fast {
namespace PML_FAST_ISA {

template <typename T>
constexpr T minus_infinity() {
  return -std::numeric_limits<T>::infinity();
}

// An anchor's positives: their scores, and where to write d(row value)/d(score). Where the spec looks at neighbours, also the
// log-sum-exp of each positive's own row (null: the columns are no rows), and where to write d(row value)/d(that).
template <typename T>
struct Positives {
  const T* s;
  T* q;
  int64_t count, self;  // slots; the slot of the anchor itself, or -1
  T low, high;          // closed interval a miner leaves
  const T* other = nullptr;
  T* back = nullptr;

  // Written so that a NaN score is kept, and seen.
  bool keeps(int64_t k) const { return k != self && !(s[k] < low) && !(s[k] > high); }
};

// What an anchor's negatives left: the fold's sums, and the row's level.
template <typename T>
struct NegativeState {
  T sum[3], level;
  T log_sum() const { return sum[0] == T(0) ? minus_infinity<T>() : std::log(sum[0]) + level; }
};

// A finished row: value and count of each of up to two terms, the numbers its negatives' slopes take, and d(value)/d(mean of
// all scores) of either side where the spec compares with means.
template <typename T>
struct Row {
  T value[2] = {0, 0}, count[2] = {0, 0}, back[2] = {0, 0}, flow[2] = {0, 0};
};

// Whether a pair's loss is counted. Written so that a NaN is, and is seen.
template <typename T>
bool inside(const Limits& limits, T loss) {
  return within(loss, static_cast<T>(limits.low), static_cast<T>(limits.high));
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

// Each spec: the fold of its negatives, the term its positives and negatives weigh with, and finish(). Most need one sweep and
// their own row.
struct OwnRow {
  static constexpr bool kNeighbours = false, kMeans = false;
};

struct OneTerm : OwnRow {
  static constexpr int kTerms = 1, kPosTerm = 0, kNegTerm = 0;
};

struct TwoTerms : OwnRow {
  static constexpr int kTerms = 2, kPosTerm = 0, kNegTerm = 1;
};

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

// relu(slope (s - at - level) + offset) a positive pair, and what the negatives' fold summed.
template <typename T>
void finish_hinges(const Positives<T>& pos, const NegativeState<T>& neg, const Limits& limits, T slope, T at, T offset,
                   Row<T>& row) {
  for (int64_t k = 0; k < pos.count; ++k) {
    if (!pos.keeps(k)) continue;
    const T loss = relu(slope * (pos.s[k] - at - neg.level) + offset);
    if (!inside(limits, loss)) continue;
    row.value[0] += loss;
    row.count[0] += T(1);
    pos.q[k] = loss <= T(0) ? T(0) : slope;
  }
  row.value[1] = neg.sum[0];
  row.count[1] = neg.sum[1];
  row.back[0] = T(1);
}

template <typename T>
struct Contrastive : TwoTerms {
  using Fold = HingeFold<T>;
  T pos_margin, neg_margin, sign;
  Limits pos_limits, neg_limits;
  Contrastive(const std::vector<double>& p, double sgn, const std::vector<Limits>& l)
      : pos_margin(T(p.at(0))), neg_margin(T(p.at(1))), sign(T(sgn)), pos_limits(l.at(0)), neg_limits(l.at(1)) {}
  Fold fold() const { return {sign, neg_margin, T(0), T(neg_limits.low), T(neg_limits.high)}; }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    finish_hinges(pos, neg, pos_limits, -sign, pos_margin, T(0), row);
  }
};

// A row's level is what is added to beta for it.
template <typename T>
struct Margin : TwoTerms {
  using Fold = HingeFold<T>;
  T margin, beta, sign;
  Limits pos_limits, neg_limits;
  Margin(const std::vector<double>& p, double sgn, const std::vector<Limits>& l)
      : margin(T(p.at(0))), beta(T(p.at(1))), sign(T(sgn)), pos_limits(l.at(0)), neg_limits(l.at(1)) {}
  Fold fold() const { return {sign, beta, margin, T(neg_limits.low), T(neg_limits.high)}; }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    finish_hinges(pos, neg, pos_limits, -sign, beta, margin, row);
  }
};

template <typename T>
struct ThresholdConsistent : TwoTerms {
  using Fold = RampFold<T>;
  T lambda_plus, lambda_minus, margin_plus, margin_minus, sign;
  Limits pos_limits, neg_limits;
  ThresholdConsistent(const std::vector<double>& p, double sgn, const std::vector<Limits>& l)
      : lambda_plus(T(p.at(0))),
        lambda_minus(T(p.at(1))),
        margin_plus(T(p.at(2))),
        margin_minus(T(p.at(3))),
        sign(T(sgn)),
        pos_limits(l.at(0)),
        neg_limits(l.at(1)) {}
  Fold fold() const { return {sign, -sign * margin_minus, lambda_minus, T(neg_limits.low), T(neg_limits.high)}; }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    const RampFold<T> ramp{-sign, sign * margin_plus, lambda_plus, T(pos_limits.low), T(pos_limits.high)};
    for (int64_t k = 0; k < pos.count; ++k) {
      const T x = ramp.eval(pos.s[k], T(0));
      if (!pos.keeps(k) || !ramp.there(x)) continue;
      row.value[0] += lambda_plus * x;
      row.count[0] += T(1);
      pos.q[k] = -sign * lambda_plus;
    }
    row.value[1] = neg.sum[0];
    row.count[1] = neg.sum[1];
    row.back[0] = T(1);
  }
};

template <typename T>
struct SigLIP : OneTerm {
  using Fold = SoftplusFold<T>;
  T scale, bias;
  SigLIP(const std::vector<double>& p, double sign, const std::vector<Limits>&) : scale(T(sign * p.at(0))), bias(T(p.at(1))) {}
  Fold fold() const { return {scale, bias}; }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    row.value[0] = neg.sum[0];
    for (int64_t k = 0; k < pos.count; ++k) {
      if (!pos.keeps(k)) continue;
      const T logit = -(scale * pos.s[k] + bias);
      row.value[0] += softplus(logit);
      pos.q[k] = -scale * sigmoid(logit);
    }
    row.count[0] = row.back[0] = T(1);
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

// Squares of what pairs fall short of the mean over all pairs of their side; the means come from a sweep of their own.
template <typename T>
struct IntraPairVariance : TwoTerms {
  static constexpr bool kMeans = true;
  using Fold = SquareFold<T>;
  Limits limits[2];
  T direction[2], reach[2], level[2] = {0, 0};
  IntraPairVariance(const std::vector<double>& p, double sign, const std::vector<Limits>& l) : limits{l.at(0), l.at(1)} {
    for (int side = 0; side < 2; ++side) {
      direction[side] = T(side == 0 ? -sign : sign);
      reach[side] = T(1.0 + static_cast<double>(direction[side]) * p.at(side));
    }
  }
  void take_mean(int side, T mean) { level[side] = mean * reach[side]; }
  SquareFold<T> side(int k) const { return {direction[k], -direction[k] * level[k], T(limits[k].low), T(limits[k].high)}; }
  Fold fold() const { return side(1); }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    const SquareFold<T> square = side(0);
    T short_by = 0;
    for (int64_t k = 0; k < pos.count; ++k) {
      const T beyond = square.eval(pos.s[k], T(0));
      if (!pos.keeps(k) || !square.kept(beyond)) continue;
      row.value[0] += beyond * beyond;
      row.count[0] += T(1);
      short_by += beyond;
      pos.q[k] = T(2) * direction[0] * beyond;
    }
    row.value[1] = neg.sum[0];
    row.count[1] = neg.sum[2];
    row.back[0] = T(2) * direction[1];
    row.flow[0] = T(-2) * direction[0] * reach[0] * short_by;
    row.flow[1] = T(-2) * direction[1] * reach[1] * neg.sum[1];
  }
};

// Means weighted by exponentials. A row's floor keeps the mean over no pair at 0: so much for each column of the comparison.
template <typename T>
struct RankedList : OneTerm {
  using Fold = WeightedFold<T>;
  static constexpr double kFloor = 1e-5;
  T boundary, t_pos, t_neg, imbalance, alpha;
  RankedList(const std::vector<double>& p, double, const std::vector<Limits>&)
      : boundary(T(p.at(3) - p.at(0))), t_pos(T(p.at(4))), t_neg(T(p.at(1))), imbalance(T(p.at(2))), alpha(T(p.at(3))) {}
  Fold fold() const { return {alpha, t_neg}; }
  T weight(T s) const {
    const T x = s - boundary;
    return ((x <= T(0)) | (s <= T(0))) ? T(0) : std::exp(t_pos * x);
  }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    T columns = neg.sum[2] + (pos.self >= 0 ? T(1) : T(0)), total = 0, share = 0;
    for (int64_t k = 0; k < pos.count; ++k) {
      if (!pos.keeps(k)) continue;
      const T w = weight(pos.s[k]);
      columns += T(1);
      total += w;
      if (w != T(0)) share += w * (pos.s[k] - boundary);
    }
    row.count[0] = T(1);
    if (columns == T(0)) return;
    const T floor = T(kFloor) * columns;
    const T mean_pos = share / (total + floor), mean_neg = neg.sum[1] / (neg.sum[0] + floor);
    row.value[0] = (T(1) - imbalance) * mean_pos + imbalance * mean_neg;
    for (int64_t k = 0; k < pos.count; ++k) {
      const T w = pos.keeps(k) ? weight(pos.s[k]) : T(0);
      if (w != T(0)) pos.q[k] = (T(1) - imbalance) * w * (T(1) + t_pos * (pos.s[k] - boundary - mean_pos)) / (total + floor);
    }
    const T factor = imbalance / (neg.sum[0] + floor);
    row.back[0] = factor * (T(1) - t_neg * mean_neg);
    row.back[1] = factor * t_neg;
  }
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
