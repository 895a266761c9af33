// The largest (or smallest) scores that a miner's interval leaves of a run of negatives, for its row and for its columns.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "../engine/pair_row.h"
#include "column_blocks.h"
#include "pair_runs.h"
#include "scores.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// The largest of sign * score; the lowest index wins a tie, and a NaN wins over all.
template <typename T>
class PairExtremes {
 public:
  PairExtremes(const RowSettings<T>& rows, const RowSettings<T>& columns, bool largest)
      : rows_(rows), columns_(columns), sign_(largest ? T(1) : T(-1)) {}

  // Best score and its index, of rows or columns.
  struct Best {
    T* score;
    int64_t* index;
  };

  // Turns a tile of inner products into scores; its rows take their extremes, and the columns that mirror theirs.
  void tile(const PairTile<T>& t, const PairLayout& g, const Scores<T>& scores, Best of_rows, Best of_columns) const {
    const int64_t rows = t.i1 - t.i0, blocks = blocks_of(t.j0, t.j1);
    std::vector<T> row_best(blocks * rows, minus_infinity<T>());
    std::vector<int64_t> row_index(blocks * rows, -1);
    over_blocks(t.j0, t.j1, g.threads, [&](int64_t block, int64_t b0, int64_t b1) {
      for (int64_t i = t.i0; i < t.i1; ++i) {
        T* s = t.row(i);
        scores.from_products(s, i, b0, b1);
        T& top = row_best[block * rows + i - t.i0];
        int64_t& where = row_index[block * rows + i - t.i0];
        // What the tiles before have found: nearly every block has nothing better.
        const T found = of_rows.index[i] < 0 ? minus_infinity<T>() : sign_ * of_rows.score[i];
        const Segments segments(g.start[i], g.end[i], b0, b1, t.j_mirror);
        for (int p = 0; p < segments.count; ++p) {
          const Segment& seg = segments.part[p];
          row(s, i, seg, found, top, where);
          if (seg.mirror) columns(s, i, seg, of_columns.score, of_columns.index);
        }
      }
    });
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t k = block * rows + r, i = t.i0 + r;
        if (row_index[k] >= 0) take(row_best[k], row_index[k], of_rows.score[i], of_rows.index[i]);
      }
  }

  void take_positives(const Positives<T>& pos, int64_t first, T& best, int64_t& index) const {
    for (int64_t k = 0; k < pos.count; ++k)
      if (pos.keeps(k)) take(sign_ * pos.s[k], first + k, best, index);
  }

 private:
  // `value` is sign * score, `best` a score.
  void take(T value, int64_t column, T& best, int64_t& index) const {
    const T top = index < 0 ? minus_infinity<T>() : sign_ * best;
    if (index < 0 || value > top || (value == top && column < index) || value != value) {
      best = sign_ * value;
      index = column;
    }
  }

  // `top` is sign * score of the column `where`; what is below `found` is left out.
  void row(const T* s, int64_t i, const Segment& seg, T found, T& top, int64_t& where) const {
    T local = minus_infinity<T>();
    const bool filter = rows_.low != nullptr;
    const T low = filter ? rows_.low[i] : T(0), high = filter ? rows_.high[i] : T(0), sign = sign_;
    int better = 0;
#pragma omp simd reduction(max : local) reduction(+ : better)
    for (int64_t j = seg.first; j < seg.last; ++j) {
      const bool keep = !filter || (!(s[j] < low) & !(s[j] > high));
      const T v = keep ? sign * s[j] : minus_infinity<T>();
      local = v > local ? v : local;
      better += keep & !(v < found) ? 1 : 0;
    }
    if (better == 0 || (where >= 0 && !(local > top))) return;
    // Of those that are as large, the first.
    constexpr int32_t none = std::numeric_limits<int32_t>::max();
    const int32_t count = static_cast<int32_t>(seg.last - seg.first);
    const T* own = s + seg.first;
    int32_t at = none;
#pragma omp simd reduction(min : at)
    for (int32_t k = 0; k < count; ++k) {
      const bool keep = !filter || (!(own[k] < low) & !(own[k] > high));
      const int32_t here = keep & !(sign * own[k] < local) ? k : none;
      at = here < at ? here : at;
    }
    top = sign * own[at];
    where = seg.first + at;
  }

  // Ties keep the row that came first.
  void columns(const T* s, int64_t i, const Segment& seg, T* best, int64_t* index) const {
    const T* low = columns_.low;
    const T *high = columns_.high, sign = sign_;
    int better = 0;
    // One comparison rules out nearly every pair.
#pragma omp simd reduction(+ : better)
    for (int64_t j = seg.first; j < seg.last; ++j) better += (index[j] < 0) | (sign * s[j] > sign * best[j]) ? 1 : 0;
    if (better == 0) return;
#pragma omp simd
    for (int64_t j = seg.first; j < seg.last; ++j) {
      const bool keep = low == nullptr || (!(s[j] < low[j]) & !(s[j] > high[j]));
      const bool take = keep & ((index[j] < 0) | (sign * s[j] > sign * best[j]));
      best[j] = take ? s[j] : best[j];
      index[j] = take ? i : index[j];
    }
  }

  RowSettings<T> rows_, columns_;
  T sign_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
