// Rows shared out among threads, a few of them a task.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../runtime/parallel.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// Calls body(i) for the rows first..last, `rows` of them in one task. No result depends on how they are shared out.
template <typename F>
void for_rows(int64_t first, int64_t last, int64_t rows, int threads, F&& body) {
  parallel_for((last - first + rows - 1) / rows, threads, [&](int64_t task) {
    const int64_t from = first + task * rows;
    for (int64_t i = from; i < std::min(last, from + rows); ++i) body(i);
  });
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
