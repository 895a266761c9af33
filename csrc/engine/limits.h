#pragma once

namespace pml_fast {

// The open interval a pair's own loss must lie in to be summed and counted (a reducer's thresholds).
struct Limits {
  double low, high;
};

}  // namespace pml_fast
