// The pairwise engine on the CPU: what happens to a tile of inner products between two matrix products.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../engine/kinds.h"
#include "../engine/limits.h"
#include "isa.h"

namespace pml_fast {

// Sorted rows and columns of a problem. Rows and columns are in the order of their class, so that the positives of row i are
// the columns start[i] .. end[i] and everything else is a negative. Pointers are owned by the caller and outlive the engine.
struct PairLayout {
  const void *x, *y;                   // [N, D], [M, D]
  const int64_t *start, *end;          // [N] positives' columns of each row
  const int64_t *col_start, *col_end;  // [M] the rows whose class is the column's
  const int64_t* offset;               // [N + 1] where each row's positives begin in the table
  const int64_t* own;                  // [N] the column that is each row's own sample, or null where that is column i
  const void* rule;                    // [4, N] closed score intervals, or null
  int64_t n, m, d;
  bool itself;        // x is y: one symmetric matrix, and the gradient of both roles goes to x
  bool exclude_self;  // row i and its own column are one sample, which is no pair
  Distance distance;
  int threads;

  // The column that is row i's own sample, or -1.
  int64_t own_column(int64_t i) const { return !exclude_self ? -1 : own == nullptr ? i : own[i]; }
};

class PairEngine {
 public:
  virtual ~PairEngine() = default;

  // Columns fold into `columns`, an engine of the same loss over the columns against the rows, rather than into the rows' own
  // state; it outlives this one, and finishes, weighs and adds its positives' gradients by itself.
  virtual void mirror_into(PairEngine& columns) = 0;

  // Finds the intervals of a multi-similarity miner in the sweep itself, in the place of the layout's rule: before
  // score_positives(), for a loss that nothing mirrors into. `sign` is +1 for similarities; with `counts_copies` a row's own
  // sample, which is no pair, bounds its negatives all the same.
  virtual void search(double epsilon, double sign, bool counts_copies) = 0;

  // Scores of all positives, exact (distances by differences), into the table.
  virtual void score_positives() = 0;

  // The largest (or smallest) score of each row's negatives inside its interval: value and sorted column.
  // Columns from j_mirror on also get theirs, in `mirror_value` and `mirror_index`.
  virtual void fold_extreme(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t j_mirror,
                            bool largest, void* value, int64_t* index, void* mirror_value, int64_t* mirror_index) = 0;
  virtual void positive_extreme(bool largest, void* value, int64_t* index) = 0;

  // Turns a tile of inner products into scores (unless it is `scored`) and folds its negatives into the state; columns from
  // j_mirror on are folded as rows too (of a batch against itself, where only tiles on or above the diagonal are visited, or
  // of the engine that mirror_into() named). Every tile is folded sweeps() times, with end_sweep() after each sweep.
  virtual void fold(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t j_mirror, bool scored) = 0;
  virtual int sweeps() const = 0;
  virtual void end_sweep() = 0;

  // Turns a tile into dL/d(inner product) (up to the distance's row sums), in place; true where any entry is not zero.
  virtual bool coefficients(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t j_mirror,
                            bool scored, bool both_roles) = 0;

  // Rows' values and counts [terms, 2, N] and whether any positive and any negative pair was seen.
  virtual void finish(void* rows, bool exists[2]) = 0;

  // Weights [terms, N] of the rows' values, before coefficients() and the gradients below; once after finish().
  virtual void set_weights(const void* w) = 0;

  // Gradients in the one sweep that folds: collect() is fold() and coefficients() of a tile, each row weighing 1, and
  // finish_gradients() weighs what they gave. For losses whose slopes are a number of the row times one of the pair, and where
  // columns collect too (as rows of the batch or for themselves) only if all rows have the same number.
  virtual void begin_collecting() = 0;
  virtual bool collect(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t j_mirror,
                       bool both_roles) = 0;

  // Adds the positives' share, and the distances' own-row share, to the gradients (either may be null).
  virtual void finish_gradients(void* dx, void* dy) = 0;

  // A level [N] for each row, or one for all, before the first sweep.
  virtual void set_levels(const void* levels) = 0;
  virtual void set_level(double level) = 0;
  virtual int terms() const = 0;
};

// `spec` is a loss of engine/pair_specs.h, or "" for an engine that only finds extremes. `sign` is +1 for similarities.
// `fixed_level` is what every logit is reduced by before its exponential; NaN means that set_level() or set_levels() tells.
PML_FAST_FOR_EACH_ISA(std::unique_ptr<PairEngine> make_pair_engine(const std::string& spec, const std::vector<double>& params,
                                                                   double sign, const std::vector<Limits>& limits,
                                                                   const PairLayout& layout, double fixed_level,
                                                                   bool is_double);)

}  // namespace pml_fast
