// The negatives of one anchor in ascending order: those whose difference from a positive reaches an edge are the first ones.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "radix_sort.h"

namespace pml_fast {
namespace PML_FAST_ISA {

template <typename T>
class SortedNegatives {
 public:
  void clear() { sorted_.clear(); }
  void push(T score, int64_t column) { sorted_.push(score, static_cast<int32_t>(column)); }

  // After the last push.
  void sort() {
    sorted_.sort();
    const int64_t count = sorted_.size();
    int64_t room = 1;
    while (room <= count) room *= 2;
    value_.assign(room, std::numeric_limits<T>::infinity());
    prefix_.resize(count + 1);
    prefix_[0] = 0;
    for (int64_t k = 0; k < count; ++k) {
      value_[k] = sorted_.value(k);
      prefix_[k + 1] = prefix_[k] + static_cast<double>(value_[k]);
    }
  }

  // How many differ from the positive by no less than the edge.
  int64_t reaching(T own, T edge) const {
    int64_t count = 0;
    for (int64_t half = static_cast<int64_t>(value_.size()) / 2; half > 0; half /= 2)
      count += own - value_[count + half - 1] >= edge ? half : 0;
    return count;
  }

  // The sum of the first ones.
  double sum(int64_t count) const { return prefix_[count]; }

  int64_t column(int64_t k) const { return sorted_.payload(k); }

 private:
  RadixSort<T, int32_t> sorted_;
  std::vector<T> value_;  // infinity up to a power of two
  std::vector<double> prefix_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
