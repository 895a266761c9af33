// Where the boundary of a monotone predicate falls among a row's sorted positives, for a run of negatives.
//
// A predicate holds(z, v) is false, then true, over ascending z, and its boundary moves right as v grows. A table over evenly
// spaced v narrows the search to the few positives whose boundary lies in the negative's bin; the last steps compare with the
// positives themselves, so that the answer is that of the predicate to the last bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../engine/math.h"

namespace pml_fast {
namespace PML_FAST_ISA {

template <typename T>
class Boundaries {
 public:
  // `z` holds `count` > 0 finite or infinite ascending values, and +infinity up to padded(count). The boundary of v lies near
  // z = v - shift.
  template <typename Predicate>
  void build(const T* z, int64_t count, T shift, Predicate holds) {
    z_ = z;
    bins_ = bins_for(count);
    first_.resize(bins_);
    lowest_ = z[0] + shift;
    const T highest = z[count - 1] + shift;
    const T rounding = 64 * std::numeric_limits<T>::epsilon() * (std::abs(lowest_) + std::abs(highest) + std::abs(shift));
    const T width = std::max((highest - lowest_) / T(bins_), rounding);
    scale_ = T(1) / width;
    // Infinite positives, or all of them zero: one bin holds everything.
    if (!(width > T(0)) || !std::isfinite(width) || !std::isfinite(scale_) || !std::isfinite(lowest_)) {
      bins_ = 1;
      lowest_ = scale_ = T(0);
    }
    int64_t low = 0, high = 0, widest = 0;
    for (int64_t bin = 0; bin < bins_; ++bin) {
      // An eighth of a bin on both sides is far more than what rounding moves a value.
      const T left = lowest_ + (T(bin) - T(0.125)) * width, right = lowest_ + (T(bin) + T(1.125)) * width;
      if (bin > 0)
        while (low < count && !holds(z[low], left)) ++low;
      if (bin == bins_ - 1) high = count;
      while (high < count && !holds(z[high], right)) ++high;
      first_[bin] = static_cast<int32_t>(low);
      widest = std::max(widest, high - low);
    }
    steps_ = 0;
    while ((int64_t{1} << steps_) < widest + 1) ++steps_;
  }

  // first[j] = the number of positives before the boundary of v[j]. A NaN has no boundary: any number up to `count`.
  template <typename Predicate>
  void find(const T* v, int64_t n, Predicate holds, int32_t* first) const {
    const T top = T(bins_ - 1), lowest = lowest_, scale = scale_;
    const int32_t* table = first_.data();
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      T bin = (v[j] - lowest) * scale;
      bin = bin > T(0) ? bin : T(0);
      bin = bin < top ? bin : top;
      first[j] = table[static_cast<int32_t>(bin)];
    }
    for (int step = steps_ - 1; step >= 0; --step) {
      const int32_t half = int32_t{1} << step;
      const T* z = z_ + half - 1;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) first[j] += holds(z[first[j]], v[j]) ? 0 : half;
    }
  }

  // How many entries a table of `count` positives needs: a search reads up to twice as far.
  static int64_t padded(int64_t count) { return 3 * count + 2; }

 private:
  static int64_t bins_for(int64_t count) {
    int64_t bins = 16;
    while (bins < 2 * count && bins < 4096) bins *= 2;
    return bins;
  }

  const T* z_ = nullptr;
  int64_t bins_ = 1;
  int steps_ = 0;
  T lowest_ = 0, scale_ = 0;
  std::vector<int32_t> first_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
