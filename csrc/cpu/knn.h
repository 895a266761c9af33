// The nearest-neighbour engine on the CPU: what happens to whole rows of inner products.
#pragma once

#include <cstdint>
#include <memory>

#include "pairwise.h"

namespace pml_fast {

// Rows against columns. For ranks the columns are in the order of their class, original order within a class: those of row i's
// class are start[i] .. end[i], and index[j] is the original place of column j, by which equal scores are ordered.
struct KnnLayout {
  const void *x, *y;           // [N, D], [M, D]
  const int64_t *start, *end;  // [N], null where only neighbours are asked for
  const int64_t* index;        // [M], null where that is j
  const int64_t* own;          // [N] the column that is each row's own sample and no candidate, or null
  int64_t n, m, d;
  Distance distance;
  double sign;  // +1 where a larger score is closer
  int threads;

  int64_t own_column(int64_t i) const { return own == nullptr ? -1 : own[i]; }
  int64_t original(int64_t j) const { return index == nullptr ? j : index[j]; }
};

// `products` are the inner products of rows i0..i1 with all columns, ld apart. They become the order that a row sees its
// columns in: smaller is closer, and what is not a number is infinitely far.
class KnnEngine {
 public:
  virtual ~KnnEngine() = default;

  // The k <= candidates closest columns of each row, in order, equal ones in their original order: [i1 - i0, k].
  virtual void nearest(void* products, int64_t ld, int64_t i0, int64_t i1, int64_t k, void* order, int64_t* column) = 0;

  // For each positive of a row, in order, how many candidates come before it; a row's begin at ranks[offset[i - i0]].
  virtual void ranks(void* products, int64_t ld, int64_t i0, int64_t i1, const int64_t* offset, int64_t* ranks) = 0;
};

PML_FAST_FOR_EACH_ISA(std::unique_ptr<KnnEngine> make_knn_engine(const KnnLayout& layout, bool is_double);)

}  // namespace pml_fast
