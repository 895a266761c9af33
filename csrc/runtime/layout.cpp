#include "layout.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace pml_fast {
namespace {

// Labels in a small range are counted; the rest are compared.
bool counting_order(const int64_t* labels, int64_t count, int64_t* order) {
  const auto [low, high] = std::minmax_element(labels, labels + count);
  const uint64_t range = static_cast<uint64_t>(*high) - static_cast<uint64_t>(*low);
  if (range > static_cast<uint64_t>(4 * count + 1024)) return false;
  const int64_t base = *low;
  std::vector<int64_t> next(range + 2, 0);
  for (int64_t i = 0; i < count; ++i) ++next[labels[i] - base + 1];
  std::partial_sum(next.begin(), next.end(), next.begin());
  for (int64_t i = 0; i < count; ++i) order[next[labels[i] - base]++] = i;
  return true;
}

}  // namespace

void class_order(const int64_t* labels, int64_t count, int64_t* order) {
  if (count == 0 || counting_order(labels, count, order)) return;
  std::iota(order, order + count, int64_t{0});
  std::stable_sort(order, order + count, [&](int64_t a, int64_t b) { return labels[a] < labels[b]; });
}

void class_runs(const int64_t* row_labels, const int64_t* row_order, int64_t rows, const int64_t* col_labels,
                const int64_t* col_order, int64_t cols, int64_t* start, int64_t* end) {
  int64_t first = 0, last = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t label = row_labels[row_order[i]];
    while (first < cols && col_labels[col_order[first]] < label) ++first;
    last = std::max(last, first);
    while (last < cols && col_labels[col_order[last]] == label) ++last;
    start[i] = first;
    end[i] = last;
  }
}

PositivePairs::PositivePairs(const int64_t* row_labels, int64_t rows, const int64_t* col_labels, int64_t cols, bool itself)
    : itself_(itself), cols_(cols), count_(itself ? -rows : 0), order_(cols), start_(rows), end_(rows) {
  class_order(col_labels, cols, order_.data());
  std::vector<int64_t> own(itself ? 0 : rows), start(rows), end(rows);
  if (!itself) class_order(row_labels, rows, own.data());
  const int64_t* row_order = itself ? order_.data() : own.data();
  class_runs(row_labels, row_order, rows, col_labels, order_.data(), cols, start.data(), end.data());
  for (int64_t k = 0; k < rows; ++k) {
    start_[row_order[k]] = start[k];
    end_[row_order[k]] = end[k];
    count_ += end[k] - start[k];
  }
}

void PositivePairs::write(int64_t* row, int64_t* column, int64_t* different) const {
  for (size_t i = 0; i < start_.size(); ++i) {
    const auto own = static_cast<int64_t>(i);
    different[i] = cols_ - (end_[i] - start_[i]);
    for (int64_t k = start_[i]; k < end_[i]; ++k) {
      if (itself_ && order_[k] == own) continue;
      *row++ = own;
      *column++ = order_[k];
    }
  }
}

}  // namespace pml_fast
