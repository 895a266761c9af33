// Columns of a tile shared out among threads, a block at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../runtime/parallel.h"
#include "scores.h"

namespace pml_fast {
namespace PML_FAST_ISA {

inline int64_t blocks_of(int64_t first, int64_t last) {
  return (last - first + kBlock - 1) / kBlock;
}

// Calls body(block, first, last) for the blocks of columns j0..j1.
template <typename F>
void over_blocks(int64_t j0, int64_t j1, int threads, F&& body) {
  parallel_for(blocks_of(j0, j1), threads, [&](int64_t block) {
    const int64_t b0 = j0 + block * kBlock;
    body(block, b0, std::min(j1, b0 + kBlock));
  });
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
