// Losses of a row that need all of its scores at once, with their derivative: the compiled twins of the specs of the same name
// in pml_fast/engine/specs. Parameters come in the order of the Python dataclass.
//
// A spec gives `row(scores, gradients, loss)`: false where the row has no loss, else its loss, and with `gradients` the scores
// turn into dloss/dscore in place.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "math.h"
#include "soft_rank.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// Scores of one row; its positives are the columns start..end but `own` (-1 for none), everything else is a negative.
template <typename T>
struct RowScores {
  T* s;  // [m]
  int64_t m, start, end, own;

  bool holds_own() const { return own >= start && own < end; }
  int64_t positives() const { return end - start - (holds_own() ? 1 : 0); }
};

// What a score is to a spec: its sign (+1 where larger is closer) and the end of the range of unit vectors' distances.
struct ScoreRange {
  double sign, largest;
};

// ---- FastAP
// ------------------------------------------------------------------------------------------------------------------

template <typename T>
class FastAP {
 public:
  FastAP(const std::vector<double>& params, const ScoreRange& range)
      : bins_(static_cast<int64_t>(params[0])), nodes_(bins_ + 1), inverted_(range.sign > 0), scale_(bins_ / range.largest) {}

  bool row(const RowScores<T>& row, bool gradients, T& loss) {
    const int64_t count = row.positives();
    if (count == 0) return false;
    place(row);
    below(row);
    double total = 0;
    by_pos_.assign(nodes_ + 1, T(0));
    by_neg_.assign(nodes_ + 1, T(0));
    double before = 0;
    for (int64_t k = 0; k < nodes_; ++k) {
      const double p = pos_[k], all = p + neg_[k], hits = p - before;
      // Written so that a NaN stays; a node without a positive adds nothing.
      if (!(hits * p <= 0) && !(all <= 0)) {
        total += hits * p / all;
        by_pos_[k] += T(((p + hits) / all - hits * p / (all * all)) / count);
        by_neg_[k] += T(-hits * p / (all * all) / count);
        if (k > 0) by_pos_[k - 1] -= T(p / all / count);
      }
      before = p;
    }
    loss = T(1 - total / count);
    if (gradients) slopes(row);
    return true;
  }

 private:
  // Above this many nodes one look-up a pair costs less than a pass for every node.
  static constexpr int64_t kPasses = 40, kRun = 256;

  // Scores become places among the nodes; what lies before the first counts as it.
  void place(const RowScores<T>& row) const {
    const T scale = scale_, shift = inverted_ ? T(1) : T(0), sign = inverted_ ? T(-1) : T(1);
#pragma omp simd
    for (int64_t k = 0; k < row.m; ++k) row.s[k] = relu((shift + sign * row.s[k]) * scale);
  }

  // Soft counts up to each node of either side: sums of clamp(k + 1 - x, 0, 1).
  void below(const RowScores<T>& row) {
    pos_.assign(nodes_ + 1, 0.0);
    neg_.assign(nodes_ + 1, 0.0);
    const int64_t own = row.holds_own() ? row.own : row.end;
    counted(row.s, row.start, own, pos_);
    counted(row.s, own + 1, row.end, pos_);
    accumulate(pos_);
    if (nodes_ > kPasses) {
      counted(row.s, 0, row.start, neg_);
      counted(row.s, row.end, row.m, neg_);
      return accumulate(neg_);
    }
    // Sums of relu(k + 1 - x), whose differences are the counts: no look-up, whatever the order of the pairs.
    passes(row.s, 0, row.start, neg_);
    passes(row.s, row.end, row.m, neg_);
    for (int64_t k = nodes_ - 1; k > 0; --k) neg_[k] -= neg_[k - 1];
  }

  int64_t node_of(T x) const {
    // A NaN belongs to the first, which it spoils.
    return x >= T(nodes_) ? nodes_ : x > T(0) ? static_cast<int64_t>(x) : 0;
  }

  // Each pair adds what it has left of its node there, and the rest to the next one: twice summed up, its soft count.
  void counted(const T* x, int64_t first, int64_t last, std::vector<double>& sums) const {
    for (int64_t k = first; k < last; ++k) {
      const int64_t node = node_of(x[k]);
      if (node == nodes_) continue;
      const double part = x[k] - T(node);
      sums[node] += 1 - part;
      sums[node + 1] += part;
    }
  }

  static void accumulate(std::vector<double>& sums) {
    for (size_t k = 1; k < sums.size(); ++k) sums[k] += sums[k - 1];
  }

  void passes(const T* x, int64_t first, int64_t last, std::vector<double>& sums) const {
    for (int64_t k0 = first; k0 < last; k0 += kRun) {
      const int64_t k1 = std::min(last, k0 + kRun);
      for (int64_t node = 0; node < nodes_; node += 4) {
        const T edge = T(node + 1);
        T a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
        for (int64_t k = k0; k < k1; ++k) {
          const T left = edge - x[k];
          a += relu(left);
          b += relu(left + T(1));
          c += relu(left + T(2));
          d += relu(left + T(3));
        }
        const T four[] = {a, b, c, d};
        for (int64_t q = 0; q < std::min<int64_t>(4, nodes_ - node); ++q) sums[node + q] += four[q];
      }
    }
  }

  void slopes(const RowScores<T>& row) const {
    const T own_scale = inverted_ ? T(-scale_) : T(scale_);
    run_slopes(row.s, 0, row.start, by_neg_.data(), own_scale);
    run_slopes(row.s, row.start, row.end, by_pos_.data(), own_scale);
    run_slopes(row.s, row.end, row.m, by_neg_.data(), own_scale);
    if (row.own >= 0) row.s[row.own] = T(0);
  }

  // Only the node at or below a pair moves with it; on a node itself the slope is 0.
  void run_slopes(T* x, int64_t first, int64_t last, const T* by, T scale) const {
    const int32_t end = static_cast<int32_t>(nodes_);
#pragma omp simd
    for (int64_t k = first; k < last; ++k) {
      const T at = x[k] < T(end) ? x[k] : T(end);
      int32_t node = static_cast<int32_t>(at);
      node = node < 0 ? 0 : node > end ? end : node;
      x[k] = x[k] > T(node) ? by[node] * scale : T(0);
    }
  }

  int64_t bins_, nodes_;
  bool inverted_;
  T scale_;
  std::vector<double> pos_, neg_;
  std::vector<T> by_pos_, by_neg_;
};

// ---- losses of soft ranks
// ----------------------------------------------------------------------------------------------------

// What the losses of soft ranks share: the row's logits, the sums and what the loss gives back for them. A row is one of its
// own positives.
template <typename T>
class RankedRow {
 public:
  explicit RankedRow(double scale) : scale_(static_cast<T>(scale)) {}

  // False where the row cannot be ranked: then its loss is NaN.
  bool rank(const RowScores<T>& row, bool among) {
    z_.resize(row.m);
    const T scale = scale_;
#pragma omp simd
    for (int64_t k = 0; k < row.m; ++k) z_[k] = row.s[k] * scale;
    for (auto* part : {&this->among, &before, &by_among, &by_before}) part->resize(row.end - row.start);
    return ranks_.sums(ranked(row), among ? this->among.data() : nullptr, before.data());
  }

  // The scores turn into the derivative.
  void derive(const RowScores<T>& row, bool among) {
    ranks_.slopes(ranked(row), among ? by_among.data() : nullptr, by_before.data(), row.s);
    const T scale = scale_;
#pragma omp simd
    for (int64_t k = 0; k < row.m; ++k) row.s[k] *= scale;
  }

  std::vector<T> among, before, by_among, by_before;  // [positives]

 private:
  Ranked<T> ranked(const RowScores<T>& row) const { return {z_.data(), row.m, row.start, row.end}; }

  T scale_;
  std::vector<T> z_;
  SoftRank<T> ranks_;
};

template <typename T>
void spoil(const RowScores<T>& row, T& loss) {
  loss = std::numeric_limits<T>::quiet_NaN();
  std::fill(row.s, row.s + row.m, loss);
}

template <typename T>
class SmoothAP {
 public:
  SmoothAP(const std::vector<double>& params, const ScoreRange& range) : row_(range.sign / params[0]) {}

  bool row(const RowScores<T>& row, bool gradients, T& loss) {
    const int64_t count = row.end - row.start;
    if (count == 0) return false;
    if (!row_.rank(row, true)) return spoil(row, loss), true;
    double total = 0;
    for (int64_t j = 0; j < count; ++j) {
      // Each positive is compared with itself as well, which gives 1/2.
      const double among = 0.5 + row_.among[j], before = row_.before[j], all = among + before;
      total += among / all;
      row_.by_among[j] = static_cast<T>(-before / (all * all) / count);
      row_.by_before[j] = static_cast<T>(among / (all * all) / count);
    }
    loss = static_cast<T>(1 - total / count);
    if (gradients) row_.derive(row, true);
    return true;
  }

 private:
  RankedRow<T> row_;
};

template <typename T>
class PNP {
 public:
  PNP(const std::vector<double>& params, const ScoreRange& range)
      : b_(params[0]), alpha_(params[1]), variant_(static_cast<Variant>(params[3])), row_(range.sign / params[2]) {}

  bool row(const RowScores<T>& row, bool gradients, T& loss) {
    if (row.positives() == 0) return false;
    if (!row_.rank(row, false)) return spoil(row, loss), true;
    const int64_t count = row.end - row.start;
    double total = 0;
    for (int64_t j = 0; j < count; ++j) {
      double slope;
      total += penalty(row_.before[j], slope);
      row_.by_before[j] = static_cast<T>(slope / count);
    }
    loss = static_cast<T>((variant_ == kDq ? 1 : 0) + total / count);
    if (gradients) row_.derive(row, false);
    return true;
  }

 private:
  // In the order of VARIANTS in pml_fast/engine/specs/pnp.py.
  enum Variant { kDs, kDq, kIu, kIb, kO };

  // The penalty of r negatives before a positive (that of Dq with the sign it has in the loss), and its derivative.
  double penalty(double r, double& slope) const {
    switch (variant_) {
      case kDs:
        slope = 1 / (1 + r);
        return std::log1p(r);
      case kDq:
        slope = alpha_ * std::pow(1 + r, -alpha_ - 1);
        return -std::pow(1 + r, -alpha_);
      case kIu:
        slope = std::log1p(r) + 1;
        return (1 + r) * std::log1p(r);
      case kIb:
        slope = r / (1 + b_ * r);
        return (b_ * r - std::log1p(b_ * r)) / (b_ * b_);
      default:
        slope = 1;
        return r;
    }
  }

  double b_, alpha_;
  Variant variant_;
  RankedRow<T> row_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
