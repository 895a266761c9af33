// One row of a strip: from the inner products that a matrix product left to scores.
#pragma once

#include <cmath>

#include "kinds.h"
#include "team.h"

namespace pml_fast {

// Below this share of the norms |x|^2 + |y|^2 - 2xy has lost digits: the distance is taken again by differences.
constexpr float kNearShare = 1e-2f;

// A row x [D] against columns y [M, D], with their squared norms (of distances).
struct RowAgainst {
  const float *x, *y;
  float x_norm;
  const float* y_norm;
  int64_t m, d;
  Distance distance;
};

PML_FAST_HD float squared_distance(const float* x, const float* y, int64_t d) {
  float sum = 0;
  for (int64_t k = 0; k < d; ++k) sum += (x[k] - y[k]) * (x[k] - y[k]);
  return sum;
}

// Inner products become scores, in place.
template <typename Team>
PML_FAST_HD void products_to_scores(const Team& team, const RowAgainst& row, float* s) {
  if (row.distance == Distance::kDot) return;
  team.each(row.m, [&](int64_t j) {
    const float norms = row.x_norm + row.y_norm[j];
    float square = norms - 2.0f * s[j];
    if (square < kNearShare * norms) square = squared_distance(row.x, row.y + j * row.d, row.d);
    s[j] = row.distance == Distance::kL2 ? sqrtf(square) : square;
  });
  team.sync();
}

// What dL/dscore multiplies the other side's row by in a gradient; of a distance, the row itself is multiplied by its negative.
struct ScoreFactor {
  Distance distance;

  PML_FAST_HD float operator()(float c, float s) const {
    if (distance == Distance::kDot) return c;
    if (distance == Distance::kL2Squared) return -2.0f * c;
    // Two equal rows pull nowhere.
    return s == 0.0f ? 0.0f : -c / s;
  }
};

}  // namespace pml_fast
