// Stream compaction: the positions of one row whose pair a miner keeps, in order.
#pragma once

#include "row_scores.h"

namespace pml_fast {

// A strip of rows first .. first + rows of n against m columns; columns of a row's class are positives, the others negatives.
struct PairStrip {
  float* tile;  // [rows, m] products; they become scores
  const float *x, *y, *x_norm, *y_norm;
  const int64_t *x_labels, *y_labels;
  const float* intervals;  // [4, n] closed: positive low, high, negative low, high
  int64_t first, rows, n, m, d;
  Distance distance;
  bool itself;  // row i and column i are one sample, which is no pair
};

struct PairFilter {
  float low[2], high[2];  // of negatives, of positives
  int64_t label, self;

  PML_FAST_HD static PairFilter of(const PairStrip& p, int64_t i) {
    const float* at = p.intervals + i;
    return {{at[2 * p.n], at[0]}, {at[3 * p.n], at[p.n]}, p.x_labels[i], p.itself ? i : -1};
  }

  // 1 for a positive that is kept, 0 for a negative, -1 for neither.
  PML_FAST_HD int kept(float s, int64_t label_of_column, int64_t j) const {
    const int side = label_of_column == label ? 1 : 0;
    return j != self && s >= low[side] && s <= high[side] ? side : -1;
  }
};

// Where kept negatives and positives go.
struct PairLists {
  int64_t *anchors[2], *columns[2];
};

// How many negatives and positives a row keeps, to counts[0] and counts[1]; its products become scores.
template <typename Team>
PML_FAST_HD void count_pairs_of_row(const Team& team, const PairStrip& p, int64_t row, int64_t* counts) {
  const int64_t i = p.first + row;
  float* s = p.tile + row * p.m;
  const bool dot = p.distance == Distance::kDot;
  products_to_scores(team, {p.x + i * p.d, p.y, dot ? 0.0f : p.x_norm[i], p.y_norm, p.m, p.d, p.distance}, s);
  const PairFilter filter = PairFilter::of(p, i);
  int64_t found[2] = {0, 0};
  team.each(p.m, [&](int64_t j) {
    const int side = filter.kept(s[j], p.y_labels[j], j);
    if (side >= 0) ++found[side];
  });
  for (int side = 0; side < 2; ++side) {
    const int64_t total = team.sum(found[side]);
    team.once([&] { counts[side] = total; });
  }
}

// Writes the pairs that count_pairs_of_row counted from places[side] on: anchors and columns, by column.
template <typename Team>
PML_FAST_HD void write_pairs_of_row(const Team& team, const PairStrip& p, int64_t row, const int64_t places[2],
                                    const PairLists& lists) {
  const int64_t i = p.first + row;
  const float* s = p.tile + row * p.m;
  const PairFilter filter = PairFilter::of(p, i);
  for (int side = 0; side < 2; ++side)
    team.compact(
        p.m, places[side], [&](int64_t j) { return filter.kept(s[j], p.y_labels[j], j) == side; },
        [&](int64_t j, int64_t place) {
          lists.anchors[side][place] = i;
          lists.columns[side][place] = j;
        });
}

}  // namespace pml_fast
