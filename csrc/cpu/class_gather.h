// Sums over columns of rows that come one after the other.
#pragma once

#include <cstdint>
#include <vector>

#include "class_chunk.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// Adds rows to sums over columns: a few in the working type, all of them in double.
template <typename T>
class Gather {
 public:
  Gather(void* out, int64_t first, int64_t count)
      : out_(out == nullptr ? nullptr : static_cast<T*>(out) + first), count_(out == nullptr ? 0 : count) {
    part_.assign(count_, T(0));
    sum_.assign(count_, 0.0);
  }

  bool wanted() const { return out_ != nullptr; }
  T* part() { return part_.data(); }

  void row_done() {
    if (++rows_ % kRows == 0) flush();
  }

  void finish() {
    flush();
    for (int64_t j = 0; j < count_; ++j) out_[j] += T(sum_[j]);
  }

 private:
  void flush() {
    for (int64_t j = 0; j < count_; ++j) {
      sum_[j] += double(part_[j]);
      part_[j] = T(0);
    }
  }

  T* out_;
  int64_t count_, rows_ = 0;
  std::vector<T> part_;
  std::vector<double> sum_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
