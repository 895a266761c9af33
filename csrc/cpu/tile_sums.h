// What tasks leave of a tile's rows: a few numbers for each block of columns, which are added up in the order of the blocks, so
// that no number of threads changes a sum.
#pragma once

#include <cstdint>
#include <vector>

#include "column_blocks.h"

namespace pml_fast {
namespace PML_FAST_ISA {

template <typename T, int64_t kNumbers>
class TileSums {
 public:
  // Zeros for rows i0..i1 and columns j0..j1.
  void open(int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    first_ = i0;
    rows_ = i1 - i0;
    sums_.assign(kNumbers * blocks_of(j0, j1) * rows_, T(0));
  }

  T* of(int64_t block, int64_t i) { return sums_.data() + kNumbers * (block * rows_ + i - first_); }

  // body(i, sums) for the rows of one block after the other.
  template <typename F>
  void each(F&& body) const {
    const T *sums = sums_.data(), *end = sums + sums_.size();
    while (sums != end)
      for (int64_t r = 0; r < rows_; ++r, sums += kNumbers) body(first_ + r, sums);
  }

 private:
  int64_t first_ = 0, rows_ = 0;
  std::vector<T> sums_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
