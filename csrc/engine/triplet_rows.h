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

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
