// Rows whose inner product with a negative is the exponent of the angular loss, one for each pair of an anchor and a positive.
#pragma once

#include <cstdint>

#include "isa.h"

namespace pml_fast {

// `count` pairs (i[k], j[k]) of rows of x [n, d] and of y [m, d], which without `y` are those of x; divided by their norms
// where `normalize`. `slope` is the squared tangent of the angle.
struct ExponentPairs {
  const void *x, *y;
  const int64_t *i, *j;
  int64_t count, n, m, d;
  bool normalize;
  double slope;
  int threads;
};

// out [count, d + 1]: 4 slope (a + p), and 2 (1 + slope) a . p.
PML_FAST_FOR_EACH_ISA(void pair_exponents(const ExponentPairs& pairs, void* out, bool is_double);)

// The gradients of sum(grad * out) by x and y (null for none), and by the slope. Each row is written by one thread, in the
// order of the pairs.
PML_FAST_FOR_EACH_ISA(double pair_exponent_gradients(const ExponentPairs& pairs, const void* grad, void* dx, void* dy,
                                                     bool is_double);)

}  // namespace pml_fast
