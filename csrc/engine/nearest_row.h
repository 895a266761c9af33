// The closest columns of one row, for any number of them: a radix selection of the furthest that is kept, then one pass that
// takes what is no further. Keys come out in any order; they are all different, so that sorting them settles ties.
#pragma once

#include <cmath>

#include "row_scores.h"

namespace pml_fast {

// A strip of rows first .. first + rows against m columns, k of which are kept, at most as many as there are candidates.
struct NearestStrip {
  float* tile;  // [rows, m] products; of distances they become squares
  const float *x, *y, *x_norm, *y_norm;
  int64_t first, rows, m, d, k;
  Distance distance;
  float turn;   // -1 where a larger score is closer
  bool itself;  // row i and column i are one sample, which is no candidate
};

// Digits of 11, 11 and 10 bits.
constexpr int64_t kDigits = 2048;

// What the threads of a row share.
struct NearestSpace {
  int32_t counts[kDigits];
  int32_t partial[kPieces];
  int32_t digit, left, tied, taken;
};

namespace nearest_row {

// Closeness as a number whose order is that of unsigned integers; what is not a number is infinitely far.
PML_FAST_HD uint32_t order_of(float score, float turn) {
  const float z = turn * score;
  // The macro, because device code may not call std::numeric_limits.
  return order_bits(z == z ? z : INFINITY);
}

// Signed keys sort by closeness, then by column.
PML_FAST_HD int64_t key_of(uint32_t order, int64_t column) {
  return static_cast<int64_t>(static_cast<uint64_t>(order ^ 0x80000000u) << 32 | static_cast<uint64_t>(column));
}

// The order of the k-th closest candidate. Of those equal to it space.left belong to the k closest, out of space.tied.
template <typename Team, typename Order>
PML_FAST_HD uint32_t furthest_kept(const Team& team, int64_t columns, int64_t self, int64_t k, NearestSpace& space,
                                   Order order) {
  uint32_t prefix = 0, known = 0;
  int32_t left = static_cast<int32_t>(k);
  const int shifts[3] = {21, 10, 0};
  for (int pass = 0; pass < 3; ++pass) {
    const int shift = shifts[pass];
    const int64_t digits = pass < 2 ? kDigits : kDigits / 2;
    team.each(digits, [&](int64_t digit) { space.counts[digit] = 0; });
    team.sync();
    team.each(columns, [&](int64_t j) {
      const uint32_t bits = order(j);
      if (j != self && (bits & known) == prefix) team.add(space.counts + ((bits >> shift) & (digits - 1)), 1);
    });
    running_sums(team, space.counts, digits, space.partial);
    team.each(digits, [&](int64_t digit) {
      const int32_t before = digit == 0 ? 0 : space.counts[digit - 1], through = space.counts[digit];
      if (before < left && left <= through) {
        space.digit = static_cast<int32_t>(digit);
        space.left = left - before;
        space.tied = through - before;
      }
    });
    team.sync();
    prefix |= static_cast<uint32_t>(space.digit) << shift;
    known |= static_cast<uint32_t>(digits - 1) << shift;
    left = space.left;
    team.sync();
  }
  return prefix;
}

}  // namespace nearest_row

// The keys [k] of one row's closest columns, k > 0.
template <typename Team>
PML_FAST_HD void nearest_of_row(const Team& team, const NearestStrip& p, int64_t row, NearestSpace& space, int64_t* keys) {
  using namespace nearest_row;
  const int64_t i = p.first + row, self = p.itself ? i : -1;
  float* s = p.tile + row * p.m;
  const bool dot = p.distance == Distance::kDot;
  products_to_scores(team, {p.x + i * p.d, p.y, dot ? 0.0f : p.x_norm[i], p.y_norm, p.m, p.d, p.distance}, s);
  const float turn = p.turn;
  const auto order = [=](int64_t j) { return order_of(s[j], turn); };
  team.once([&] { space.taken = 0; });
  const uint32_t furthest = furthest_kept(team, p.m, self, p.k, space, order);
  const bool all_tied = space.left == space.tied;
  team.each(p.m, [&](int64_t j) {
    const uint32_t bits = order(j);
    if (j != self && (bits < furthest || (all_tied && bits == furthest))) keys[team.take(&space.taken)] = key_of(bits, j);
  });
  if (all_tied) return;
  // Of those that tie for the last places the first columns come first.
  const int64_t places = space.left, first = p.k - places;
  team.compact(
      p.m, 0, [&](int64_t j) { return j != self && order(j) == furthest; },
      [&](int64_t j, int64_t place) {
        if (place < places) keys[first + place] = key_of(furthest, j);
      });
}

}  // namespace pml_fast
