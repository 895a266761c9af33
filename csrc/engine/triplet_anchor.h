// All triplets of one anchor over its row of scores, without naming one: sorted positives, a search for each negative.
//
// As csrc/cpu/triplet.cpp, for a team of threads (a CUDA block) and rows that are whole. Scores are turned so that larger is
// farther (z = -sign s): a triplet's violation is (z_ap - z_an) + margin for every score. Method: Rust and Hocking, "A
// Log-linear Gradient Descent Algorithm for Unbalanced Binary Classification using the All Pairs Squared Hinge Loss", arXiv
// 2302.11062.
#pragma once

#include <cmath>

#include "kinds.h"
#include "team.h"

namespace pml_fast {

struct TripletRule {
  float margin, select_margin, sign;
  Select select;
  bool positive_only;  // count only losses above 0, else every selected triplet
};

// Closed intervals of the score that the pairs of one anchor must lie in.
struct PairInterval {
  float pos_low, pos_high, neg_low, neg_high;
};

// What an anchor's threads share, for up to `capacity` (a power of two) columns of its class.
struct AnchorSpace {
  uint64_t* keys;    // [capacity]
  int32_t* ends;     // [capacity + 1]
  int32_t* partial;  // [kPieces]

  PML_FAST_HD static int64_t bytes(int64_t capacity) { return capacity * 12 + (kPieces + 1) * 4; }

  PML_FAST_HD static AnchorSpace in(void* memory, int64_t capacity) {
    uint64_t* keys = static_cast<uint64_t*>(memory);
    int32_t* ends = reinterpret_cast<int32_t*>(keys + capacity);
    return {keys, ends, ends + capacity + 1};
  }
};

// One anchor: its row of scores of M columns, of which begin..end are of its class and `self` (or -1) is itself.
struct Anchor {
  float* scores;
  int64_t columns, begin, end, self;
  const PairInterval* interval;  // or null: all pairs
  float weight;
};

struct AnchorLoss {
  double sum;
  int64_t count;
};

namespace triplet_anchor {

constexpr uint64_t kNone = ~uint64_t{0};

// Written so that a NaN is kept, and seen.
PML_FAST_HD bool keeps(float s, float low, float high) {
  return !(s < low) && !(s > high);
}

// The sorted positives: their number, and how many are NaN (which stand nowhere).
struct Positives {
  int64_t count, broken;
};

template <typename Team>
PML_FAST_HD Positives sort_positives(const Team& team, const Anchor& a, const TripletRule& rule, const AnchorSpace& space) {
  const int64_t size = a.end - a.begin;
  int64_t padded = 1;
  while (padded < size) padded *= 2;
  int64_t count = 0, broken = 0;
  team.each(padded, [&](int64_t k) {
    uint64_t key = kNone;
    const int64_t j = a.begin + k;
    if (k < size && j != a.self) {
      const float s = a.scores[j];
      if (a.interval == nullptr || keeps(s, a.interval->pos_low, a.interval->pos_high)) {
        if (s == s) {
          key = uint64_t{order_bits(-rule.sign * s)} << 32 | static_cast<uint64_t>(k);
          ++count;
        } else {
          ++broken;
        }
      }
    }
    space.keys[k] = key;
  });
  count = team.sum(count);
  broken = team.sum(broken);
  sort_keys(team, space.keys, padded);
  return {count, broken};
}

PML_FAST_HD float positive(const AnchorSpace& space, int64_t k) {
  return number_of(static_cast<uint32_t>(space.keys[k] >> 32));
}

// The first of `count` sorted positives for which a predicate, false then true over ascending z, holds.
template <typename Predicate>
PML_FAST_HD int64_t first_where(const AnchorSpace& space, int64_t count, Predicate holds) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (holds(positive(space, middle)))
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

// Positives low..high that the miner's choice leaves a negative.
struct Range {
  int64_t low, high;
};

PML_FAST_HD Range selected(const AnchorSpace& space, int64_t count, const TripletRule& rule, float v) {
  const auto within = [&](float margin) { return first_where(space, count, [=](float z) { return v - z <= margin; }); };
  switch (rule.select) {
    case Select::kAll:
      return {within(rule.select_margin), count};
    case Select::kHard:
      return {within(rule.select_margin < 0.0f ? rule.select_margin : 0.0f), count};
    case Select::kSemihard:
      return {within(rule.select_margin), within(0.0f)};
    case Select::kEasy:
      return {0, within(rule.select_margin)};
    default:
      return {0, count};
  }
}

}  // namespace triplet_anchor

// The anchor's loss; where `gradients`, its row becomes what the other side's rows are multiplied by in the gradient:
// factor(weight * dL/dscore, score). All threads return the same.
template <typename Team, typename Factor>
PML_FAST_HD AnchorLoss triplets_of_anchor(const Team& team, const Anchor& a, const TripletRule& rule, const AnchorSpace& space,
                                          bool gradients, Factor factor) {
  using namespace triplet_anchor;
  const Positives positives = sort_positives(team, a, rule, space);
  const int64_t p = positives.count;
  team.each(p + 1, [&](int64_t k) { space.ends[k] = 0; });
  team.sync();
  const float scale = a.weight * rule.sign;
  double sum = 0;
  int64_t count = 0, negatives = 0;
  team.each(a.columns, [&](int64_t j) {
    if (j >= a.begin && j < a.end) return;
    const float s = a.scores[j], v = -rule.sign * s;
    float c = 0;
    if (a.interval == nullptr || keeps(s, a.interval->neg_low, a.interval->neg_high)) {
      ++negatives;
      const Range range = v == v ? selected(space, p, rule, v) : Range{0, p};
      const float margin = rule.margin;
      // A NaN has no boundary: every triplet of it counts, and is seen.
      int64_t from = v == v ? first_where(space, p, [=](float z) { return (z - v) + margin > 0.0f; }) : 0;
      from = from < range.low ? range.low : from;
      from = from > range.high ? range.high : from;
      const int64_t active = range.high - from;
      if (active > 0) {
        team.add(space.ends + from, 1);
        team.add(space.ends + range.high, -1);
        sum += static_cast<double>(active) * (static_cast<double>(margin) - static_cast<double>(v));
        c = static_cast<float>(active);
      }
      count += rule.positive_only ? active : (range.high > range.low ? range.high - range.low : 0);
    }
    // An anchor that weighs nothing, and a negative in no triplet, must not turn what is not finite into NaN.
    if (gradients) a.scores[j] = c == 0.0f || scale == 0.0f ? 0.0f : factor(scale * c, s);
  });
  running_sums(team, space.ends, p, space.partial);
  team.each(p, [&](int64_t k) {
    if (space.ends[k] != 0) sum += static_cast<double>(space.ends[k]) * static_cast<double>(positive(space, k));
  });
  sum = team.sum(sum);
  count = team.sum(count);
  negatives = team.sum(negatives);
  if (positives.broken > 0 && negatives > 0 && rule.select == Select::kEvery) {
    sum = static_cast<double>(NAN);
    count += positives.broken * negatives;
  }
  if (gradients) {
    team.each(a.end - a.begin, [&](int64_t k) { a.scores[a.begin + k] = 0.0f; });
    team.sync();
    team.each(p, [&](int64_t k) {
      if (space.ends[k] == 0 || scale == 0.0f) return;
      const int64_t j = a.begin + static_cast<int64_t>(space.keys[k] & 0xffffffffu);
      a.scores[j] = factor(-scale * static_cast<float>(space.ends[k]), -rule.sign * positive(space, k));
    });
    team.sync();
  }
  return {sum, count};
}

}  // namespace pml_fast
