// The order of rows by class, in which the positives of a row are one run of columns.
#pragma once

#include <cstdint>

namespace pml_fast {

// order[k] is the row that stands k-th when rows are sorted by label, ties in their own order.
void class_order(const int64_t* labels, int64_t count, int64_t* order);

// For each sorted row, the run of sorted columns with the same label.
void class_runs(const int64_t* row_labels, const int64_t* row_order, int64_t rows, const int64_t* col_labels,
                const int64_t* col_order, int64_t cols, int64_t* start, int64_t* end);

}  // namespace pml_fast
