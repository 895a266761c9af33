// A small batch against class weights: each way in one call, from rows as they are given to their gradients.
#pragma once

#include "classes.h"

namespace pml_fast {

struct SmallClasses {
  const void* x;  // [N, D]
  int64_t n, d;
  const void* weights;  // [classes * centers, D], the two distances apart
  int64_t classes, weight_step, feature_step;
  const int64_t* target;  // [N]
  const void* bias;       // [N] or null
  // Rows or weights are divided by their norms; scores are |x|^2 - |x - w|^2.
  bool unit_rows, unit_weights, squared;
  int threads;
};

// What the forward keeps for the backward: rows [N, D], their norms [N], those of the weights [M] and all products [N, M], of M
// = classes * centers weights.

// Fills the state, the folds `others` [N] or (kClassLse) [classes], each row's score of its own class and, unless null, the
// norms of the rows' own weights [N] (of one centre a class).
PML_FAST_FOR_EACH_ISA(void small_class_scores(const SmallClasses& batch, const ClassMaths& maths, void* state, void* others,
                                              void* own, void* norms, bool is_double);)

// The gradients by the rows [N, D] and by the weights, either of which may be null; those by the weights lie as weight_step and
// feature_step say, one of which is 1. `norms` [N], unless null, are derivatives by the norms.
PML_FAST_FOR_EACH_ISA(void small_class_grads(const SmallClasses& batch, const ClassMaths& maths, void* state,
                                             const ClassSlopes& slopes, const void* norms, void* dx, void* dw,
                                             int64_t weight_step, int64_t feature_step, bool is_double);)

}  // namespace pml_fast
