// A whole step of a small batch in one call: where a batch is small, the calls between the steps cost more than the steps.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pairwise.h"
#include "triplet.h"

namespace pml_fast {

// How the rows of one term are reduced: "mean", "sum" or "threshold" (mean of what lies inside the limits); or "over_triplets",
// the mean over both terms of what lies inside the limits, each pair as often as there are triplets that hold it.
struct SmallTerm {
  std::string fold;
  bool element;  // a loss a row, else sums and counts of pairs
};

// The threads that a step of n rows, m columns and d features is worth: it has a dozen loops, and waking threads for each takes
// longer than a few multiplications.
inline int small_threads(int64_t n, int64_t m, int64_t d, int threads) {
  constexpr int64_t kFewest = int64_t{1} << 23;
  return n * m * d < kFewest ? 1 : threads;
}

struct SmallBatch {
  const void* x;          // [N, D]
  const int64_t* labels;  // [N]
  const void* rule;       // [4, N] or null
  int64_t n, d;
  Distance distance;
  bool normalize, gated, gradients;
  double sign, fixed_level;
  int threads;
};

// A pair loss: the columns (y null for the batch itself), and the logits a s + b of its negatives: where their level is not
// fixed (NaN), it is the middle of a range that does not exceed `span`, or else each row's largest. Where it is bidirectional
// the columns are anchors as well: then limits and terms are those of the rows, followed by as many of the columns. The rows
// that are compared are scaled, and have a further feature where there is a bias: it, against 1.
struct SmallLoss {
  std::string spec;
  std::vector<double> params;
  std::vector<Limits> limits;
  std::vector<SmallTerm> terms;
  const void* y;            // [M, D]
  const int64_t* y_labels;  // [M]
  int64_t m;
  double a, b, span;
  bool bidirectional, biased;
  double scale, bias;
  std::optional<double> epsilon;  // of a multi-similarity miner whose intervals are found in the step
};

// Where the results of a pair loss go; null for gradients that nobody wants.
struct SmallOutputs {
  void *total, *terms;                   // [1], [T] ("over_triplets": [2, T], the second row their slopes)
  void *x, *y, *by_log_scale, *by_bias;  // gradients [N, D], [M, D], [1], [1]
};

// `refused` has written nothing: a listed target is out of order, or names no row or column. Of `nothing` all terms are 0.
enum class SmallResult { refused, nothing, done };

PML_FAST_FOR_EACH_ISA(SmallResult small_pair_loss(const SmallBatch& batch, const SmallLoss& loss, const SmallOutputs& out,
                                                  bool is_double);)

// All triplets: loss[1] and, with gradients, dx [N, D]. `fold` is as a SmallTerm's.
PML_FAST_FOR_EACH_ISA(void small_triplet_loss(const SmallBatch& batch, const TripletOptions& options, const std::string& fold,
                                              void* loss, void* dx, bool is_double);)

// Value and index (-1 for none, an infinity of the losing sign) of each row's largest or smallest score over its positives or
// negatives inside its rule.
PML_FAST_FOR_EACH_ISA(void small_extreme(const SmallBatch& batch, bool positive, bool largest, void* value, int64_t* index,
                                         bool is_double);)

// The hardest `share` of all positive and of all negative pairs, each counted from both of its rows: rule[4, N] is closed
// intervals of the scores to keep, cut[2, 2] of each side the last row that keeps ties (-1 for none) and how many of these are
// too many.
PML_FAST_FOR_EACH_ISA(void small_hardest(const SmallBatch& batch, double share, void* rule, int64_t* cut, bool is_double);)

// `count` listed pairs (i[k], j[k]) of rows of x.
struct SmallPairs {
  const void* x;  // [N, D]
  int64_t n, d;
  const int64_t *i, *j;
  int64_t count;
  Distance distance;
  bool normalize;
};

// The score of each pair; false where an index names no row.
PML_FAST_FOR_EACH_ISA(bool small_pair_scores(const SmallPairs& pairs, void* scores, bool is_double);)

// Triplets whose pairs are listed, first those of anchors and positives, then as many of the same anchors and the negatives.
struct SmallTriplets {
  int64_t count;
  const bool* keep;  // [count], or null for all
  double margin, sign;
  bool smooth;
  Limits limits;
  std::string fold;  // as a SmallTerm's
};

// loss[1] and, where it is not null, dx [N, D]; false where an index names no row.
PML_FAST_FOR_EACH_ISA(bool small_listed_triplets(const SmallPairs& pairs, const SmallTriplets& list, void* loss, void* dx,
                                                 bool is_double);)

// The targets of a softmax over a row's columns (y null for the batch itself), listed in the order of the rows.
struct SmallTargets {
  const void* y;  // [M, D]
  int64_t m;
  bool own;  // of the batch itself: each row is a column of its own
  const int64_t *row, *column;
  const void* target;  // [count]
  int64_t count;
  double scale;  // of the scores
  SmallTerm term;
  Limits limits;
};

// Cross-entropies sum_k target[k] (log sum_j exp(scale score[j]) - scale score[k]) of the rows, reduced to loss[1], and dx [N,
// D] and dy [M, D] where they are not null.
PML_FAST_FOR_EACH_ISA(SmallResult small_soft_targets(const SmallBatch& batch, const SmallTargets& targets, void* loss, void* dx,
                                                     void* dy, bool is_double);)

// dx [N, D] of sum(grad[k] * score[k]).
PML_FAST_FOR_EACH_ISA(void small_pair_gradients(const SmallPairs& pairs, const void* grad, void* dx, bool is_double);)

}  // namespace pml_fast
