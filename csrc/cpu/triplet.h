// The triplet engine on the CPU: all triplets of an anchor over a tile of inner products, without naming one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "pairwise.h"

namespace pml_fast {

struct TripletOptions {
  double margin, select_margin;
  bool smooth;
  Select select;
  bool positive_only;  // count only losses above 0 (AvgNonZero), else every selected triplet
  double sign;         // +1 for similarities
};

class TripletEngine {
 public:
  virtual ~TripletEngine() = default;

  // Makes room for the positives of a strip of rows.
  virtual void begin_strip(int64_t i0, int64_t i1) = 0;

  // Sorts the positives of rows i0..i1 of the strip, found in their inner products with columns from j0 on (turned into scores
  // in place). They come out of a product as the negatives do, so that equal vectors tie exactly.
  virtual void prepare(void* products, int64_t ld, int64_t i0, int64_t i1, int64_t j0) = 0;

  // Rows' sums and counts are added to; with `gradients` the tile becomes dL/d(inner product) (up to a distance's row sums),
  // each row's weighted by w[i] (null: 1). True where any entry is not zero.
  virtual bool fold(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, bool gradients, const void* w) = 0;

  // The coefficients [n, n] of a whole batch against itself become those of both roles: their sum with their transpose.
  virtual void symmetrise(void* tile, int64_t n) const = 0;

  // Sums and counts [2, N].
  virtual void rows(double* out) const = 0;

  // After the last tile of a strip: what its rows give to their positives' gradients.
  virtual void finish_strip(int64_t i0, int64_t i1, const void* w) = 0;

  // Adds the positives' share, and the distances' own-row share, to the gradients (either may be null).
  virtual void finish_gradients(void* dx, void* dy) = 0;
};

PML_FAST_FOR_EACH_ISA(std::unique_ptr<TripletEngine> make_triplet_engine(const TripletOptions& options,
                                                                         const PairLayout& layout, bool is_double);)

}  // namespace pml_fast
