// How many columns of a row rank before each of its positives, softly: sums of sigmoids, and their derivative.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "math.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// The scores of one row: its positives are the columns start..end, everything else is a negative.
template <typename T>
struct Ranked {
  const T* z;  // [m]
  int64_t m, start, end;

  int64_t positives() const { return end - start; }
};

// R_j = sum over k of sigmoid(z_k - z_j) = sum of e_k / (e_k + e_j) with e = exp(z - centre): one exponential a column serves
// all positives near the centre, so that a pair costs one division.
template <typename T>
class SoftRank {
 public:
  // Sums of the positives and of the negatives for each positive; `among` may be null. False where a positive's own score is
  // not finite: then it cannot be ranked.
  bool sums(const Ranked<T>& row, T* among, T* before) {
    if (!group(row)) return false;
    const T highest = highest_negative(row);
    for (const Group& g : groups_) {
      const bool none = highest < g.lowest - kNone;
      exponentials(row, g, among != nullptr, !none);
      for (int64_t k = g.first; k < g.last; ++k) {
        const int64_t j = order_[k];
        const T own = exp_of(row.z[row.start + j] - g.centre);
        before[j] = none ? T(0) : T(ranked(0, row.start, own) + ranked(row.end, row.m, own));
        if (among != nullptr) among[j] = T(ranked(row.start, row.end, own));
      }
    }
    return true;
  }

  // The derivative by every column's z of `sum of by_among[j] * among[j] + by_before[j] * before[j]`, after sums() of the row.
  void slopes(const Ranked<T>& row, const T* by_among, const T* by_before, T* dz) {
    std::fill(dz, dz + row.m, T(0));
    const T highest = highest_negative(row);
    for (const Group& g : groups_) {
      const bool none = highest < g.lowest - kNone;
      if (groups_.size() > 1) exponentials(row, g, by_among != nullptr, !none);
      for (int64_t k = g.first; k < g.last; ++k) {
        const int64_t j = order_[k];
        const T own = exp_of(row.z[row.start + j] - g.centre);
        double sum = 0;
        if (!none) sum += add_slopes(0, row.start, own, by_before[j], dz) + add_slopes(row.end, row.m, own, by_before[j], dz);
        if (by_among != nullptr) sum += add_slopes(row.start, row.end, own, by_among[j], dz);
        dz[row.start + j] -= T(sum);
      }
    }
  }

 private:
  // Positives whose scores lie within 2 * kHalf.
  struct Group {
    T centre, lowest;
    int64_t first, last;
  };

  static constexpr int64_t kRun = 1024;
  // exp(+-kReach) and sums of two of them are numbers of the type. Beyond it a sigmoid is 0 or 1 up to exp(kHalf - kReach).
  static constexpr T kReach = 85, kHalf = 20, kNone = 65;

  bool group(const Ranked<T>& row) {
    const T* z = row.z + row.start;
    T zero = 0;
    for (int64_t j = 0; j < row.positives(); ++j) zero += z[j] - z[j];
    if (!(zero == T(0))) return false;
    order_.resize(row.positives());
    for (int64_t j = 0; j < row.positives(); ++j) order_[j] = j;
    groups_.clear();
    for (int64_t first = 0; first < row.positives();) {
      T top = z[order_[first]];
      for (int64_t k = first; k < row.positives(); ++k) top = std::max(top, z[order_[k]]);
      const T low = top - 2 * kHalf;
      const auto end =
          std::partition(order_.begin() + first, order_.end(), [&](int64_t j) { return z[j] == top || z[j] > low; });
      const int64_t last = end - order_.begin();
      groups_.push_back({top - kHalf, low, first, last});
      first = last;
    }
    return true;
  }

  static T highest_negative(const Ranked<T>& row) {
    T top = -std::numeric_limits<T>::infinity();
    int nan = 0;
    for (const auto& [first, last] : {std::pair(int64_t{0}, row.start), std::pair(row.end, row.m)}) {
#pragma omp simd reduction(max : top) reduction(+ : nan)
      for (int64_t k = first; k < last; ++k) {
        top = row.z[k] > top ? row.z[k] : top;
        nan += row.z[k] == row.z[k] ? 0 : 1;
      }
    }
    return nan != 0 ? std::numeric_limits<T>::quiet_NaN() : top;
  }

  void exponentials(const Ranked<T>& row, const Group& g, bool positives, bool negatives) {
    if (static_cast<int64_t>(e_.size()) < row.m) e_.resize(row.m);
    if (negatives) exponentials(row.z, 0, row.start, g.centre);
    if (positives) exponentials(row.z, row.start, row.end, g.centre);
    if (negatives) exponentials(row.z, row.end, row.m, g.centre);
  }

  void exponentials(const T* z, int64_t first, int64_t last, T centre) {
    T* e = e_.data();
#pragma omp simd
    for (int64_t k = first; k < last; ++k) {
      T d = z[k] - centre;
      d = d > kReach ? kReach : d;
      e[k] = exp_of(d < -kReach ? -kReach : d);
    }
  }

  double ranked(int64_t first, int64_t last, T own) const {
    const T* e = e_.data();
    double total = 0;
    for (int64_t k0 = first; k0 < last; k0 += kRun) {
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t k = k0; k < std::min(last, k0 + kRun); ++k) sum += e[k] / (e[k] + own);
      total += sum;
    }
    return total;
  }

  double add_slopes(int64_t first, int64_t last, T own, T by, T* dz) const {
    const T* e = e_.data();
    double total = 0;
    for (int64_t k0 = first; k0 < last; k0 += kRun) {
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t k = k0; k < std::min(last, k0 + kRun); ++k) {
        const T share = T(1) / (e[k] + own);
        const T slope = by * ((e[k] * share) * (own * share));
        dz[k] += slope;
        sum += slope;
      }
      total += sum;
    }
    return total;
  }

  std::vector<T> e_;
  std::vector<int64_t> order_;
  std::vector<Group> groups_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
