// The positives of a strip of rows in closeness order, and what the negatives that they met add up to.
//
// Closeness order: z = -sign * score, so that a smaller z is always closer, z_ap - z_an + margin is the violation, and every
// predicate of a negative is monotone in z_ap. Predicates are written in the expression order that gives the same bits as
// (ap - an) + margin on the scores themselves.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "radix_sort.h"
#include "triplet.h"
#include "triplet_search.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// What an anchor's triplets add up to.
struct AnchorSums {
  double loss = 0;
  int64_t count = 0;
};

// One anchor as its negatives meet it.
template <typename T>
struct SortedAnchor {
  const T* z;            // the positives, ascending, and infinity up to Boundaries::padded(count)
  int64_t count;         // of positives
  const double* suffix;  // sums of z from each place to the end
  double* weight;        // how many triplets end (or begin) at each positive; of smooth losses their slopes
  AnchorSums* sums;
};

template <typename T>
class SortedPositives {
 public:
  SortedPositives(const TripletOptions& options, const PairLayout& layout)
      : g_(layout), sign_(options.sign), rule_(static_cast<const T*>(layout.rule)), sums_(layout.n) {}

  // Tables live for one strip of rows.
  void begin_strip(int64_t i0, int64_t i1) {
    strip_ = i0;
    begin_.assign(i1 - i0 + 1, 0);
    for (int64_t i = i0; i < i1; ++i) begin_[i - i0 + 1] = begin_[i - i0] + Boundaries<T>::padded(g_.end[i] - g_.start[i]);
    const int64_t size = g_.offset[i1] - g_.offset[i0];
    z_.resize(begin_[i1 - i0]);
    column_.resize(size);
    suffix_.resize(size);
    weight_.assign(size, 0.0);
    count_.assign(i1 - i0, 0);
  }

  // Sorts the positives of a row of the strip, found in its scores.
  void sort(int64_t i, const T* scores) {
    thread_local RadixSort<T> pos;
    pos.clear();
    T nan = 0;
    for (int64_t j = g_.start[i]; j < g_.end[i]; ++j) {
      if (j == g_.own_column(i)) continue;
      const T s = scores[j];
      if (rule_ != nullptr && (s < rule_[i] || s > rule_[g_.n + i])) continue;
      nan += s - s;
      pos.push(toward(s), j);
    }
    // A NaN cannot be sorted: it is remembered, and the row's sum made NaN.
    if (nan != nan) sums_[i].loss = std::numeric_limits<double>::quiet_NaN();
    pos.sort();
    const int64_t count = pos.size();
    count_[i - strip_] = count;
    T* z = z_.data() + base(i);
    std::fill(z + count, z_.data() + base(i + 1), std::numeric_limits<T>::infinity());
    double suffix = 0;
    for (int64_t k = count - 1; k >= 0; --k) {
      z[k] = pos.value(k);
      column_[place(i) + k] = pos.payload(k);
      suffix += static_cast<double>(z[k]);
      suffix_[place(i) + k] = suffix;
    }
  }

  SortedAnchor<T> anchor(int64_t i) {
    return {z_.data() + base(i), count_[i - strip_], suffix_.data() + place(i), weight_.data() + place(i), &sums_[i]};
  }

  // The column of a row's k-th closest positive.
  int64_t column(int64_t i, int64_t k) const { return column_[place(i) + k]; }

  const AnchorSums& sums(int64_t i) const { return sums_[i]; }

  T toward(T score) const { return sign_ > 0 ? -score : score; }

 private:
  // Where a row's tables begin: of values, padded for a search, and of all else.
  int64_t base(int64_t i) const { return begin_[i - strip_]; }
  int64_t place(int64_t i) const { return g_.offset[i] - g_.offset[strip_]; }

  PairLayout g_;
  double sign_;
  const T* rule_;
  int64_t strip_ = 0;
  std::vector<int64_t> begin_, column_, count_;
  std::vector<T> z_;
  std::vector<double> suffix_, weight_;
  std::vector<AnchorSums> sums_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
