// Losses of whole rows on the CPU: what happens to a strip of inner products between the matrix products.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pairwise.h"

namespace pml_fast {

// Where a strip's results go; each has an entry for every row of the problem.
struct StripRows {
  void* value;    // [N] losses, 0 for rows that have none
  void* there;    // [N] 1 for rows that have a loss
  void* kept;     // [N] 1 for rows that also lie inside the limits
  void* own;      // [N] with gradients: what a row is multiplied by in its own gradient (0 for inner products)
  const void* w;  // [N] with gradients: the weights of the rows, or null: 1 inside the limits, else 0
  bool gradients;
};

class StripEngine {
 public:
  virtual ~StripEngine() = default;

  // Rows i0..i1 against all columns: fills the results, and with gradients turns the products into dL/d(inner product). True
  // where any entry is not zero.
  virtual bool run(void* products, int64_t ld, int64_t i0, int64_t i1, const StripRows& rows) = 0;

  // Whether the weights of all rows that have a loss are one number inside the limits and 0 outside, up to rounding: then
  // `factor` is it.
  virtual bool common_factor(const StripRows& rows, double& factor) const = 0;
};

// `spec` is a loss of engine/row_specs.h; null where there is none of that name.
PML_FAST_FOR_EACH_ISA(std::unique_ptr<StripEngine> make_strip_engine(const std::string& spec, const std::vector<double>& params,
                                                                     double sign, const Limits& limits,
                                                                     const PairLayout& layout, bool is_double);)

}  // namespace pml_fast
