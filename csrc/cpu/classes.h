// The class engine on the CPU: what happens to a block of inner products of rows and class weights between two matrix products.
#pragma once

#include <cstdint>

#include "isa.h"

namespace pml_fast {

enum class Pool { kSingle, kMax, kSoft };
enum class ClassFold { kRowLse, kClassLse, kRowSquares };

// The maths, as engine/classes/spec.py describes it.
struct ClassMaths {
  Pool pool;
  ClassFold fold;
  int64_t centers;
  double scale, sharpness;
};

// Products of some rows with the weights of the classes first .. first + classes, ld apart. The score of row i and column j is
// products[i, j] * inverse[j] + lift[i] * square[j]; what is null is left out. Pointers begin at the block's rows and columns.
struct ClassBlock {
  const void* products;
  int64_t ld, rows, first, classes;
  const void *inverse, *square;  // [classes * centers]
  const void* lift;              // [rows]
  const int64_t* target;         // [rows] each row's class
  const void* bias;              // [rows] added to the logits, or null
  int threads;
};

// State of the folds, of rows or (kClassLse) of the block's classes: sum of exp(logit - top), or of squares.
struct ClassState {
  void* top;
  double* sum;
};

// The derivatives of a loss by the folds (of rows or of the block's classes) and by each row's score of its own class.
struct ClassSlopes {
  const void *fold, *weight;  // the log-sum-exp, and the derivative by it
  const void* own;            // [rows]
};

// Euclidean norms of `count` weights of d numbers.
PML_FAST_FOR_EACH_ISA(void class_norms(const void* weights, int64_t count, int64_t d, int64_t count_step, int64_t d_step,
                                       void* norms, int threads, bool is_double);)

// Divides weights by their norms, no less than `least`, in place; what is of unit norm up to `rounding` stays as it is.
PML_FAST_FOR_EACH_ISA(void make_unit_weights(void* weights, int64_t count, int64_t d, int64_t count_step, int64_t d_step,
                                             double least, double rounding, int threads, bool is_double);)

// Adds a block to the state, and writes the pooled score of each row whose class the block has.
PML_FAST_FOR_EACH_ISA(void fold_classes(const ClassMaths& maths, const ClassBlock& block, const ClassState& state, void* own,
                                        bool is_double);)

// Writes the derivatives by the products, which may lie where these do. Adds to `along` [columns], unless null, the sums over
// rows of the derivative times what it is by, and to `lifted` [columns], unless null, those of lift times derivative by score.
PML_FAST_FOR_EACH_ISA(void class_coefficients(const ClassMaths& maths, const ClassBlock& block, const ClassSlopes& slopes,
                                              void* out, int64_t ld_out, void* along, void* lifted, bool is_double);)

}  // namespace pml_fast
