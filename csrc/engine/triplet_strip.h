// A strip of anchors against all columns, sorted by class: inner products in, losses and gradient factors out.
#pragma once

#include "row_scores.h"
#include "triplet_anchor.h"

namespace pml_fast {

// Rows first .. first + rows of a problem of n rows and m columns; pointers are the device's the strip lives on.
struct TripletStrip {
  float* tile;                   // [rows, m] products; with `gradients` they become factors
  const float *x, *y;            // [n, d], [m, d]
  const float *x_norm, *y_norm;  // squared norms [n], [m], of distances
  const int64_t *begin, *end;    // [n] the columns of each row's class
  const int64_t* own;            // [n] the column that is the row itself, or null
  const float* intervals;        // [4, n] or null
  const float* weights;          // [n]
  double* sums;                  // [n]
  int64_t* counts;               // [n]
  float* own_factors;            // [n] what a distance multiplies the row itself by
  int64_t first, rows, n, m, d;
  Distance distance;
  TripletRule rule;
  bool gradients;
};

// One row of the strip, in `space` of room for its class.
template <typename Team>
PML_FAST_HD void triplets_of_row(const Team& team, const TripletStrip& p, int64_t row, const AnchorSpace& space) {
  const int64_t i = p.first + row;
  float* s = p.tile + row * p.m;
  const bool dot = p.distance == Distance::kDot;
  products_to_scores(team, {p.x + i * p.d, p.y, dot ? 0.0f : p.x_norm[i], p.y_norm, p.m, p.d, p.distance}, s);
  PairInterval interval{};
  if (p.intervals != nullptr)
    interval = {p.intervals[i], p.intervals[p.n + i], p.intervals[2 * p.n + i], p.intervals[3 * p.n + i]};
  const Anchor anchor{
      s,           p.m, p.begin[i], p.end[i], p.own == nullptr ? -1 : p.own[i], p.intervals == nullptr ? nullptr : &interval,
      p.weights[i]};
  const AnchorLoss loss = triplets_of_anchor(team, anchor, p.rule, space, p.gradients, ScoreFactor{p.distance});
  double own = 0;
  if (p.gradients && !dot) {
    team.each(p.m, [&](int64_t j) { own -= static_cast<double>(s[j]); });
    own = team.sum(own);
  }
  team.once([&] {
    p.sums[i] = loss.sum;
    p.counts[i] = loss.count;
    p.own_factors[i] = static_cast<float>(own);
  });
  team.sync();
}

}  // namespace pml_fast
