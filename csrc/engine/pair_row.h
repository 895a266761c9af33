// A row of a pair loss: its positives, what a sweep left of its negatives, and what a spec makes of the two.
#pragma once

#include <cstdint>

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

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
