// Hinges of a run of negatives against many sorted positives: each negative's triplets are a range of them, found by search.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "scores.h"
#include "sorted_positives.h"
#include "triplet_search.h"

namespace pml_fast {
namespace PML_FAST_ISA {

template <typename T>
class TripletRanges {
 public:
  // Before the first run of an anchor.
  void open(const SortedAnchor<T>& a, const TripletOptions& o) {
    const T selected = T(o.select_margin);
    ends_.assign(kCopies * (a.count + 1), 0);
    active_.build(a.z, a.count, T(o.margin), violated(o));
    if (o.select == Select::kAll || o.select == Select::kSemihard) low_.build(a.z, a.count, selected, within(o));
    if (o.select == Select::kHard) low_.build(a.z, a.count, std::min(selected, T(0)), both(o));
    if (o.select == Select::kSemihard) high_.build(a.z, a.count, T(0), wrong);
    if (o.select == Select::kEasy) high_.build(a.z, a.count, selected, within(o));
  }

  // c = d(sum of the counted losses)/dz of each negative.
  void meet(const SortedAnchor<T>& a, const TripletOptions& o, const T* v, int64_t n, T* c) {
    const int32_t p = static_cast<int32_t>(a.count);
    int32_t begin[kBlock], low[kBlock], high[kBlock];
    active_.find(v, n, violated(o), begin);
    const bool bounded = o.select != Select::kEvery;
    if (bounded) {
      std::fill(low, low + n, 0);
      std::fill(high, high + n, p);
      if (o.select == Select::kAll || o.select == Select::kSemihard) low_.find(v, n, within(o), low);
      if (o.select == Select::kHard) low_.find(v, n, both(o), low);
      if (o.select == Select::kSemihard) high_.find(v, n, wrong, high);
      if (o.select == Select::kEasy) high_.find(v, n, within(o), high);
      for (int64_t j = 0; j < n; ++j) {
        high[j] = std::min(high[j], p);
        begin[j] = std::min(std::max(begin[j], low[j]), high[j]);
      }
    } else {
      for (int64_t j = 0; j < n; ++j) begin[j] = std::min(begin[j], p);
    }
    // A NaN has no boundary: every triplet of it counts, and is seen.
    for (int64_t j = 0; j < n; ++j) begin[j] = v[j] == v[j] ? begin[j] : (bounded ? std::min(low[j], high[j]) : 0);
    count_ends(begin, n, p, 1);
    if (bounded) count_ends(high, n, p, -1);
    double loss = 0;
    int64_t total = 0;
#pragma omp simd reduction(+ : loss, total)
    for (int64_t j = 0; j < n; ++j) {
      const int32_t count = (bounded ? high[j] : p) - begin[j];
      loss += count * (o.margin - static_cast<double>(v[j]));
      c[j] = static_cast<T>(-count);
      total += o.positive_only ? count : (bounded ? std::max(high[j] - low[j], 0) : p);
    }
    a.sums->loss += loss;
    a.sums->count += total;
  }

  // After the last run: the sum of ap over all triplets, and how many triplets each positive is in.
  void close(const SortedAnchor<T>& a) const {
    double loss = 0;
    for (int64_t k = 0; k < a.count; ++k) {
      int64_t ends = 0;
      for (int64_t copy = 0; copy < kCopies; ++copy) ends += ends_[copy * (a.count + 1) + k];
      if (ends == 0) continue;
      loss += static_cast<double>(ends) * a.suffix[k];
      a.weight[k] += static_cast<double>(ends);
    }
    a.sums->loss += loss;
  }

 private:
  static constexpr int64_t kCopies = 4;

  // ---- predicates: the triplet is violated; its negative is within the miner's margin; it is the closer one

  static auto violated(const TripletOptions& o) {
    return [m = T(o.margin)](T z, T v) { return (z - v) + m > T(0); };
  }
  static auto within(const TripletOptions& o) {
    return [m = T(o.select_margin)](T z, T v) { return v - z <= m; };
  }
  static bool wrong(T z, T v) { return v - z <= T(0); }
  static auto both(const TripletOptions& o) {
    return [near = within(o)](T z, T v) { return near(z, v) && wrong(z, v); };
  }

  // Negatives of one row often end at one place: in turn they write to tables of their own, and none waits for the last.
  void count_ends(const int32_t* at, int64_t n, int32_t p, int32_t by) {
    int32_t* ends = ends_.data();
    int64_t j = 0;
    for (; j + kCopies <= n; j += kCopies)
      for (int64_t copy = 0; copy < kCopies; ++copy) ends[copy * (p + 1) + at[j + copy]] += by;
    for (; j < n; ++j) ends[at[j]] += by;
  }

  Boundaries<T> active_, low_, high_;
  std::vector<int32_t> ends_;  // kCopies tables of where ranges of positives begin, less where they end
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
