// Histograms of all pairs or of all triplets on the CPU: what happens to a strip of inner products between the matrix products.
#pragma once

#include <cstdint>
#include <memory>

#include "pairwise.h"

namespace pml_fast {

// The bins (see engine/histogram.h), and what is counted in them: pairs, positive and negative ones apart, or triplets.
struct HistogramOptions {
  double low, delta;
  int64_t count;
  bool triplets;

  // Numbers of the sums: [2, 2, count] counts and parts of either side, or [3, count] counts, parts and values.
  int64_t sums() const { return (triplets ? 3 : 4) * count; }
};

class HistogramEngine {
 public:
  virtual ~HistogramEngine() = default;

  // Turns the products of rows i0..i1 with the columns from j0 on into scores, in place, and counts their pairs or triplets. Of
  // pairs of a batch with itself j0 is i0: each is visited once. Triplets take all columns.
  virtual void fold(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0) = 0;

  // The sums of what was folded; false where a pair lies outside of the bins.
  virtual bool sums(double* out) const = 0;

  // `slopes` [2, count] are a loss's derivatives by the parts (of positive and negative pairs; or of triplets, then by their
  // values). Turns a tile of products, or of scores where it is `scored`, into dL/d(inner product), in place; `own` [N] gets
  // what each row is multiplied by in its own gradient (0 for inner products). True where any entry is not zero.
  virtual void set_slopes(const double* slopes) = 0;
  virtual bool coefficients(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, bool scored, void* own) const = 0;
};

PML_FAST_FOR_EACH_ISA(std::unique_ptr<HistogramEngine> make_histogram_engine(const HistogramOptions& options,
                                                                             const PairLayout& layout, bool is_double);)

}  // namespace pml_fast
