// The order of rows by class, in which the positives of a row are one run of columns.
#pragma once

#include <cstdint>
#include <vector>

namespace pml_fast {

// order[k] is the row that stands k-th when rows are sorted by label, ties in their own order.
void class_order(const int64_t* labels, int64_t count, int64_t* order);

// For each sorted row, the run of sorted columns with the same label.
void class_runs(const int64_t* row_labels, const int64_t* row_order, int64_t rows, const int64_t* col_labels,
                const int64_t* col_order, int64_t cols, int64_t* start, int64_t* end);

// All pairs of a row and a column with the same label, without a row's pair with itself where the sets are one.
class PositivePairs {
 public:
  PositivePairs(const int64_t* row_labels, int64_t rows, const int64_t* col_labels, int64_t cols, bool itself);

  int64_t count() const { return count_; }

  // The pairs [count], by row and then by column, and how many columns have another label than each row [rows].
  void write(int64_t* row, int64_t* column, int64_t* different) const;

 private:
  bool itself_;
  int64_t cols_, count_;
  std::vector<int64_t> order_, start_, end_;  // of the columns, and where each row's are
};

}  // namespace pml_fast
