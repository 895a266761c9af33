// A list of pairs seen from the rows that stand in it.
#pragma once

#include <cstdint>
#include <vector>

namespace pml_fast {
namespace PML_FAST_ISA {

// place[first[r]] .. place[first[r + 1] - 1] are the pairs of row r, in the order of the list.
struct PairsOfRows {
  PairsOfRows(const int64_t* row, int64_t count, int64_t rows) : first(rows + 1, 0), place(count) {
    for (int64_t k = 0; k < count; ++k) ++first[row[k] + 1];
    for (int64_t r = 0; r < rows; ++r) first[r + 1] += first[r];
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t k = 0; k < count; ++k) place[next[row[k]]++] = k;
  }

  std::vector<int64_t> first, place;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
