// Sweeps of miners over strips of scores: a strip is computed by torch, and folded here while it is in cache.
#pragma once

#include <cstdint>

#include "isa.h"

namespace pml_fast {

// Rows first.. of a set against columns column.. of another, and what says which pairs there are.
struct ScoreStrip {
  const void* scores;                  // [rows, columns]
  const int64_t *labels, *ref_labels;  // of all rows, of all columns
  int64_t rows, columns, first, column;
  // Row i and column i are one sample, which has no pair; of `mirrored` pairs only those right of the diagonal are seen.
  bool itself, mirrored;
  bool is_double;
  int threads;
};

// Positives are side 0, negatives side 1. How hard a pair is: `sign` times its score for negatives, the opposite for positives.

// Counts the values of the digit of 16 bits at `shift` among the pairs of each side whose higher digits are `prefix` [2] (null
// at the topmost digit): counts [2, 2^16] grow. Hardness is taken as a signed integer of its order. total [2] grows by all
// pairs; a NaN is in no count.
PML_FAST_FOR_EACH_ISA(void count_digits(const ScoreStrip& strip, double sign, int shift, const int64_t* prefix, int64_t* counts,
                                        int64_t* total);)

// What lies around the hardness `key` [2] of each side: ties [2, N] of each row (and of each column, where mirrored) grow,
// below and above [2] move to the next easier and the next harder key.
PML_FAST_FOR_EACH_ISA(void find_neighbours(const ScoreStrip& strip, double sign, const int64_t* key, int64_t n, int64_t* ties,
                                           int64_t* below, int64_t* above);)

// Moves low [2] and high [2] to the least and the greatest score of each side; a NaN is none.
PML_FAST_FOR_EACH_ISA(void widen_range(const ScoreStrip& strip, void* low, void* high);)

// Bins of scores, a set for each side: edges [2, count + 1] in ascending order. The last bin holds both of its ends.
struct ScoreBins {
  const void* edges;
  int64_t count;
};

// counts [2, count] grow by the pairs in each bin.
PML_FAST_FOR_EACH_ISA(void count_bins(const ScoreStrip& strip, const ScoreBins& bins, int64_t* counts);)

// Pairs of one side that were drawn: in ascending order numbers start[b] .. start[b + 1] - 1 of bin b, each the place of a pair
// among those of its bin, row by row.
struct DrawnPairs {
  const int64_t *start, *rank;
  int64_t *anchor, *other;  // written where a pair is in the strip
  int64_t *seen, *next;     // [count] of each bin: its pairs in the strips before, and the first number that is not found yet
};

PML_FAST_FOR_EACH_ISA(void locate_pairs(const ScoreStrip& strip, const ScoreBins& bins, const DrawnPairs (&drawn)[2]);)

}  // namespace pml_fast
