// Sums over columns of rows that come one after the other.
#pragma once

#include <cstdint>
#include <vector>

#include "class_chunk.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// Sums over columns, of which each group of rows has its own until all are added up in their order.
class ColumnSumsOfGroups {
 public:
  ColumnSumsOfGroups(bool wanted, int64_t groups, int64_t columns)
      : groups_(groups), columns_(columns), sums_(wanted ? groups * columns : 0) {}

  // Of a group, from a column on; null where nobody wants them.
  double* at(int64_t group, int64_t first) { return sums_.empty() ? nullptr : sums_.data() + group * columns_ + first; }

  template <typename T>
  void add_to(T* out) const {
    if (sums_.empty()) return;
    for (int64_t j = 0; j < columns_; ++j) {
      double sum = 0;
      for (int64_t g = 0; g < groups_; ++g) sum += sums_[g * columns_ + j];
      out[j] += T(sum);
    }
  }

 private:
  int64_t groups_, columns_;
  std::vector<double> sums_;
};

// Adds rows to sums over columns: a few in the working type, all of them in double.
template <typename T>
class Gather {
 public:
  Gather(double* out, int64_t count) : out_(out), count_(out == nullptr ? 0 : count) { part_.assign(count_, T(0)); }

  bool wanted() const { return out_ != nullptr; }
  T* part() { return part_.data(); }

  void row_done() {
    if (++rows_ % kRows == 0) flush();
  }

  void finish() { flush(); }

 private:
  void flush() {
    for (int64_t j = 0; j < count_; ++j) {
      out_[j] += double(part_[j]);
      part_[j] = T(0);
    }
  }

  double* out_;
  int64_t count_, rows_ = 0;
  std::vector<T> part_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
