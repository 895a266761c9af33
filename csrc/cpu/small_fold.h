// What the steps of a pair loss share: levels, folds, and the reduction of the rows to terms.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../engine/pair_row.h"
#include "pairwise.h"
#include "scores.h"
#include "small.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// The reduced loss of one term and every row's weight.
template <typename T>
T reduce(const SmallTerm& term, const Limits& limits, const T* value, const T* count, int64_t n, T* w) {
  T total = 0, number = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (term.element) {
      const bool in = term.fold != "threshold" || !((value[i] <= T(limits.low)) | (value[i] >= T(limits.high)));
      const bool kept = in && count[i] > T(0);
      w[i] = kept ? T(1) : T(0);
      number += w[i];
      if (kept) total += value[i];
    } else {
      w[i] = T(1);
      number += count[i];
      total += value[i];
    }
  }
  if (term.fold == "sum") return total;
  const T scale = number > T(0) ? T(1) / number : T(0);
  for (int64_t i = 0; i < n; ++i) w[i] *= scale;
  return total * scale;
}

// The largest Euclidean norm of rows.
template <typename T>
T longest(const T* rows, int64_t n, int64_t d) {
  T top = 0;
  for (int64_t i = 0; i < n; ++i) top = std::max(top, std::sqrt(dot(rows + i * d, rows + i * d, d)));
  return top;
}

// Gives an engine a level for each of its rows x, in the middle of the logits that the norms of x and of the columns (at most
// `top`) allow; false where these span too much. Of inner products the middle is the same for all rows.
template <typename T>
bool set_levels(PairEngine& engine, Distance distance, const SmallLoss& loss, const T* x, int64_t n, int64_t d, T top,
                std::vector<T>& levels) {
  levels.resize(n);
  for (int64_t i = 0; i < n; ++i) {
    const T norm = std::sqrt(dot(x + i * d, x + i * d, d));
    T far = distance == Distance::kDot ? norm * top : norm + top;
    if (distance == Distance::kL2Squared) far *= far;
    const T least = distance == Distance::kDot ? -far : T(0);
    // Written so that a NaN does not fit.
    if (!(std::abs(T(loss.a)) * (far - least) <= T(loss.span))) return false;
    levels[i] = T(loss.a) * (far + least) / T(2) + T(loss.b);
  }
  if (distance == Distance::kDot)
    engine.set_level(loss.b);
  else
    engine.set_levels(levels.data());
  return true;
}

// Positive and negative pairs count as often as triplets hold them: with each negative, or each positive, of their anchor. Two
// losses, and by how much each moves where all that it counts moves by 1.
template <typename T>
void reduce_over_triplets(const PairLayout& g, const T* rows, T* terms_out, T* w) {
  T number = 0;
  for (int64_t t = 0; t < 2; ++t) {
    const T *value = rows + 2 * t * g.n, *count = value + g.n;
    T* own = w + t * g.n;
    T total = 0, slope = 0;
    for (int64_t i = 0; i < g.n; ++i) {
      const int64_t same = g.end[i] - g.start[i];
      own[i] = T(t == 0 ? g.m - same : same - (g.own_column(i) >= 0 ? 1 : 0));
      // A row without triplets adds nothing, also where one of its pairs is not a number.
      if (own[i] > T(0)) total += own[i] * value[i];
      slope += own[i] * count[i];
    }
    terms_out[t] = total;
    terms_out[2 + t] = slope;
    number += slope;
  }
  const T scale = number > T(0) ? T(1) / number : T(0);
  for (int64_t t = 0; t < 4; ++t) terms_out[t] *= scale;
  for (int64_t k = 0; k < 2 * g.n; ++k) w[k] *= scale;
}

// The values and counts of an engine's n rows become its terms, of the loss those from `first` on. `w` gets the weights of the
// rows' values. Of a bidirectional loss either direction is half of it.
template <typename T>
void reduce_all(const SmallBatch& batch, const SmallLoss& loss, const PairLayout& g, PairEngine& engine, int64_t first,
                T* terms_out, std::vector<T>& w) {
  const int64_t n = g.n, count = engine.terms();
  std::vector<T> rows(2 * count * n);
  w.resize(count * n);
  bool exists[2];
  engine.finish(rows.data(), exists);
  if (loss.terms[0].fold == "over_triplets") return reduce_over_triplets(g, rows.data(), terms_out, w.data());
  const bool closed = batch.gated && !(exists[0] && exists[1]);
  for (int64_t t = 0; t < count; ++t) {
    T *own = w.data() + t * n, *value = rows.data() + 2 * t * n;
    T& total = terms_out[first + t];
    total = reduce(loss.terms[first + t], loss.limits[first + t], value, value + n, n, own);
    const T share = closed ? T(0) : loss.bidirectional ? T(0.5) : T(1);
    if (share == T(1)) continue;
    // A gate lets nothing through, not even a NaN.
    total = closed ? T(0) : share * total;
    for (int64_t i = 0; i < n; ++i) own[i] = share * own[i];
  }
}

// An engine of a small step with its n rows, and the level of each where one does not serve all.
template <typename T>
struct Leveled {
  PairEngine& engine;
  std::vector<T>& levels;
  int64_t n;

  void take(const SmallLoss& loss, const std::vector<T>& extreme, const std::vector<int64_t>& index) {
    levels.resize(n);
    for (int64_t i = 0; i < n; ++i) levels[i] = T(loss.a) * (index[i] < 0 ? T(0) : extreme[i]) + T(loss.b);
    engine.set_levels(levels.data());
  }
};

// The rows of a tile, and its columns where they are anchors as well.
template <typename T>
using AnchorSets = std::vector<Leveled<T>>;

// Gives every anchor its largest logit as its level: norms allow too many. The tile's products become scores.
template <typename T>
void level_by_scores(const SmallLoss& loss, AnchorSets<T>& anchors, T* tile, int64_t n, int64_t m, int64_t mirror) {
  const bool largest = loss.a > 0;
  std::vector<std::vector<T>> best;
  std::vector<std::vector<int64_t>> at;
  for (const Leveled<T>& own : anchors) {
    best.emplace_back(own.n, largest ? minus_infinity<T>() : -minus_infinity<T>());
    at.emplace_back(own.n, -1);
  }
  // Where rows alone are anchors no column mirrors them, and the last extremes are theirs.
  anchors[0].engine.fold_extreme(tile, m, 0, n, 0, m, mirror, largest, best[0].data(), at[0].data(), best.back().data(),
                                 at.back().data());
  for (size_t k = 0; k < anchors.size(); ++k) anchors[k].take(loss, best[k], at[k]);
}

// `known` says that the engines have their levels.
template <typename T>
void fold_all(const SmallBatch& batch, const SmallLoss& loss, AnchorSets<T> anchors, bool known, T* tile, int64_t n, int64_t m,
              int64_t mirror) {
  PairEngine& engine = anchors[0].engine;
  if (loss.epsilon) engine.search(*loss.epsilon, batch.sign, false);
  engine.score_positives();
  if (!known) level_by_scores(loss, anchors, tile, n, m, mirror);
  for (int sweep = 0; sweep < engine.sweeps(); ++sweep) {
    engine.fold(tile, m, 0, n, 0, m, mirror, sweep > 0 || !known);
    engine.end_sweep();
  }
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
