// The triplet losses of one anchor: a run of negatives against its sorted positives.
//
// Everything is in "closeness order": z = -sign * score, so that a smaller z is always closer, z_ap - z_an + margin is the
// violation, and every predicate of a negative is monotone in z_ap. Predicates are written in the expression order that gives
// the same bits as (ap - an) + margin on the scores themselves.
#pragma once

#include <cstdint>

#include "math.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// What a row's run of negatives adds to: one loss sum, one count, and for each positive how much its gradient is.
struct AnchorSums {
  double loss = 0;
  int64_t count = 0;
};

// log(1 + e) for e in [0, 1]: 2 atanh(e / (2 + e)), to 1e-8.
inline float log1p_of(float e) {
  const float t = e / (2.0f + e), u = t * t;
  const float p = 1.0f + u * (1.0f / 3 + u * (1.0f / 5 + u * (1.0f / 7 + u * (1.0f / 9 + u * (1.0f / 11 + u / 13)))));
  return 2.0f * t * p;
}

inline double log1p_of(double e) {
  return std::log1p(e);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
