// Columns of a tile shared out among threads, a block at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../runtime/parallel.h"
#include "scores.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// What would be one block is shared out in halves, so that two threads have a part of it. The width knows nothing of
// their number: sums are the same for any.
inline int64_t block_width(int64_t first, int64_t last) {
  return last - first > kBlock ? kBlock : kBlock / 2;
}

inline int64_t blocks_of(int64_t first, int64_t last) {
  const int64_t width = block_width(first, last);
  return (last - first + width - 1) / width;
}

// Calls body(block, first, last) for the blocks of columns j0..j1.
template <typename F>
void over_blocks(int64_t j0, int64_t j1, int threads, F&& body) {
  const int64_t width = block_width(j0, j1);
  parallel_for(blocks_of(j0, j1), threads, [&](int64_t block) {
    const int64_t b0 = j0 + block * width;
    body(block, b0, std::min(j1, b0 + width));
  });
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
