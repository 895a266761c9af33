// Losses that each pair has of its own: no other pair of the anchor matters, but for means that all pairs share.
#pragma once

#include <cstdint>
#include <vector>

#include "pair_row.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// relu(direction (s - at - level) + offset) a pair, each side with a boundary `at` of its own. A row's level is added to both.
template <typename T>
struct PairHinge : TwoTerms {
  using Fold = HingeFold<T>;
  T pos_at, neg_at, offset, sign;
  Limits pos_limits, neg_limits;
  PairHinge(double positive, double negative, double margin, double sgn, const std::vector<Limits>& l)
      : pos_at(T(positive)), neg_at(T(negative)), offset(T(margin)), sign(T(sgn)), pos_limits(l.at(0)), neg_limits(l.at(1)) {}
  Fold fold() const { return {sign, neg_at, offset, T(neg_limits.low), T(neg_limits.high)}; }
  void finish(const Positives<T>& pos, const NegativeState<T>& neg, Row<T>& row) const {
    for (int64_t k = 0; k < pos.count; ++k) {
      if (!pos.keeps(k)) continue;
      const T loss = relu(-sign * (pos.s[k] - pos_at - neg.level) + offset);
      if (!inside(pos_limits, loss)) continue;
      row.value[0] += loss;
      row.count[0] += T(1);
      pos.q[k] = loss <= T(0) ? T(0) : -sign;
    }
    row.value[1] = neg.sum[0];
    row.count[1] = neg.sum[1];
    row.back[0] = T(1);
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

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
