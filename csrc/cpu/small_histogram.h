// A whole step of a loss of histograms, of a small batch against itself, in one call.
#pragma once

#include "histogram.h"
#include "small.h"

namespace pml_fast {

// A running histogram [count] and the weight of a batch in it (of triplets' losses; else null).
struct RunningHistogram {
  const double* before;
  double momentum;
  double* after;
};

// The loss and, where dx is not null, its gradient [N, D]. False, with nothing written, where a pair lies outside of the bins.
PML_FAST_FOR_EACH_ISA(bool small_histogram_loss(const SmallBatch& batch, const HistogramOptions& options,
                                                const RunningHistogram& running, double* loss, void* dx, bool is_double);)

}  // namespace pml_fast
