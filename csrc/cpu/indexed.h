// The indexed engine on the CPU: scores of listed pairs, and their gradients row by row.
#pragma once

#include <cstdint>

#include "isa.h"
#include "pairwise.h"

namespace pml_fast {

// `count` pairs (i[k], j[k]) of rows of x and of y, D numbers each.
struct PairList {
  const void *x, *y;
  const int64_t *i, *j;
  int64_t count, d;
  Distance distance;
  int threads;
};

// scores[k] of each pair.
PML_FAST_FOR_EACH_ISA(void score_list(const PairList& list, void* scores, bool is_double);)

// Adds to grad (`rows` of them) what each pair gives to its row of x, or with `columns` to its row of y. Each row of grad is
// written by one thread, in the order of the list: no two orders of adding, whatever the number of threads.
PML_FAST_FOR_EACH_ISA(void add_list_gradients(const PairList& list, const void* scores, const void* grad_scores, bool columns,
                                              void* grad, int64_t rows, bool is_double);)

}  // namespace pml_fast
