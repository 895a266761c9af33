// The largest (or smallest) scores that a miner's interval leaves of a run of negatives, for its row and for its columns.
#pragma once

#include <cstdint>

#include "../engine/pair_row.h"
#include "pair_runs.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// The largest of sign * score; the lowest index wins a tie, and a NaN wins over all.
template <typename T>
class PairExtremes {
 public:
  PairExtremes(const RowSettings<T>& rows, const RowSettings<T>& columns, bool largest)
      : rows_(rows), columns_(columns), sign_(largest ? T(1) : T(-1)) {}

  // `value` is sign * score, `best` a score.
  void take(T value, int64_t column, T& best, int64_t& index) const {
    const T top = index < 0 ? minus_infinity<T>() : sign_ * best;
    if (index < 0 || value > top || (value == top && column < index) || value != value) {
      best = sign_ * value;
      index = column;
    }
  }

  void take_positives(const Positives<T>& pos, int64_t first, T& best, int64_t& index) const {
    for (int64_t k = 0; k < pos.count; ++k)
      if (pos.keeps(k)) take(sign_ * pos.s[k], first + k, best, index);
  }

  // `top` is sign * score of the column `where`.
  void row(const T* s, int64_t i, const Segment& seg, T& top, int64_t& where) const {
    T local = minus_infinity<T>();
    const bool filter = rows_.low != nullptr;
    const T low = filter ? rows_.low[i] : T(0), high = filter ? rows_.high[i] : T(0), sign = sign_;
    int kept = 0;
#pragma omp simd reduction(max : local) reduction(+ : kept)
    for (int64_t j = seg.first; j < seg.last; ++j) {
      const bool keep = !filter || (!(s[j] < low) & !(s[j] > high));
      const T v = keep ? sign * s[j] : minus_infinity<T>();
      local = v > local ? v : local;
      kept += keep ? 1 : 0;
    }
    if (kept == 0 || (where >= 0 && !(local > top))) return;
    for (int64_t j = seg.first; j < seg.last; ++j)
      if (rows_.keeps(i, s[j]) && !(sign * s[j] < local)) {
        top = sign * s[j];
        where = j;
        return;
      }
  }

  void columns(const T* s, int64_t i, const Segment& seg, T* best, int64_t* index) const {
    for (int64_t j = seg.first; j < seg.last; ++j) {
      const T v = sign_ * s[j];
      // One comparison rules out nearly every pair; ties keep the row that came first.
      if (index[j] >= 0 && !(v > sign_ * best[j])) continue;
      if (!columns_.keeps(j, s[j])) continue;
      best[j] = s[j];
      index[j] = i;
    }
  }

 private:
  RowSettings<T> rows_, columns_;
  T sign_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
