// Runs of columns that are negatives of a row: folded into the rows' sums in one sweep, turned into dL/dscore in the last one.
#pragma once

#include <algorithm>
#include <vector>

#include "../engine/pair_folds.h"
#include "pairwise.h"

// A loop is vectorised only once all that it calls is inlined into it, which a compiler leaves off where a source is large.
#if defined(__GNUC__)
  #define PML_FAST_FLATTEN __attribute__((flatten))
#else
  #define PML_FAST_FLATTEN
#endif

namespace pml_fast {
namespace PML_FAST_ISA {

// Inner products, then scores, of rows i0..i1 with columns j0..j1; columns from j_mirror on serve their own rows as well.
template <typename T>
struct PairTile {
  T* at;
  int64_t ld, i0, i1, j0, j1, j_mirror;

  // What is indexed by the column.
  T* row(int64_t i) const { return at + (i - i0) * ld - j0; }
};

// `mirror` says that the columns fold into their own rows as well.
struct Segment {
  int64_t first, last;
  bool mirror;
};

// The negatives of row i among columns j0..j1: what lies before and after its positives, cut where mirroring begins.
struct Segments {
  Segment part[4];
  int count = 0;

  Segments(int64_t start, int64_t end, int64_t j0, int64_t j1, int64_t j_mirror) {
    add(j0, std::min(j1, start), j_mirror);
    add(std::max(j0, end), j1, j_mirror);
  }

 private:
  void add(int64_t first, int64_t last, int64_t j_mirror) {
    if (first >= last) return;
    const int64_t cut = std::min(std::max(first, j_mirror), last);
    if (first < cut) part[count++] = {first, cut, false};
    if (cut < last) part[count++] = {cut, last, true};
  }
};

// What the runs read of the rows.
template <typename T>
struct RowSettings {
  const T *low = nullptr, *high = nullptr;  // closed interval of each row's negatives, or null
  const T* levels = nullptr;                // each row's level, or null where one serves all
  T level = 0;

  T level_of(int64_t i) const { return levels != nullptr ? levels[i] : level; }
  bool keeps(int64_t i, T s) const { return low == nullptr || (!(s < low[i]) && !(s > high[i])); }
};

template <typename T>
class PairRuns {
 public:
  // Rows and columns have levels, and intervals, either both or neither.
  PairRuns(const RowSettings<T>& rows, const RowSettings<T>& columns) : rows_(rows), columns_(columns) {}

  // Adds a segment of row i to sums[k] of the row, and where it mirrors to columns[k][j] of its columns.
  template <typename Fold>
  void fold(const Fold& f, const T* s, int64_t i, const Segment& seg, T* sums, std::vector<T>* columns) const {
    if (seg.mirror)
      choose([&](auto filter, auto levels) { fold_run<true, filter.value, levels.value>(f, s, i, seg, sums, columns); });
    else
      choose([&](auto filter, auto levels) { fold_run<false, filter.value, levels.value>(f, s, i, seg, sums, columns); });
  }

  // dL/dscore of a segment of row i, in the row's role or in both roles; back[k][i] are the numbers of row i, and there[k][j]
  // those of column j.
  template <typename Fold>
  void slopes(const Fold& f, const T* s, int64_t i, const Segment& seg, bool both, const std::vector<T>* back,
              const std::vector<T>* there, T* h) const {
    if (both)
      choose([&](auto filter, auto levels) { slope_run<true, filter.value, levels.value>(f, s, i, seg, back, there, h); });
    else
      choose([&](auto filter, auto levels) { slope_run<false, filter.value, levels.value>(f, s, i, seg, back, there, h); });
  }

 private:
  template <typename F>
  void choose(F&& run) const {
    const std::true_type yes;
    const std::false_type no;
    if (rows_.low != nullptr)
      rows_.levels != nullptr ? run(yes, yes) : run(yes, no);
    else
      rows_.levels != nullptr ? run(no, yes) : run(no, no);
  }

  template <bool kMirror, bool kFilter, bool kLevels, typename Fold>
  PML_FAST_FLATTEN void fold_run(const Fold f, const T* s, int64_t i, const Segment& seg, T* sums,
                                 std::vector<T>* columns) const {
    T sum0 = 0, sum1 = 0, sum2 = 0;
    T *to0 = columns[0].data(), *to1 = columns[1].data(), *to2 = columns[2].data();
    const T *lows = columns_.low, *highs = columns_.high, *levels = columns_.levels;
    const T low = kFilter ? rows_.low[i] : T(0), high = kFilter ? rows_.high[i] : T(0), own = rows_.level_of(i);
#pragma omp simd reduction(+ : sum0, sum1, sum2)
    for (int64_t j = seg.first; j < seg.last; ++j) {
      const T e = f.eval(s[j], own);
      const bool keep = !kFilter || (!(s[j] < low) & !(s[j] > high));
      sum0 += keep ? f.template part<0>(s[j], e) : T(0);
      if constexpr (Fold::kState > 1) sum1 += keep ? f.template part<1>(s[j], e) : T(0);
      if constexpr (Fold::kState > 2) sum2 += keep ? f.template part<2>(s[j], e) : T(0);
      if constexpr (kMirror) {
        const T there = kLevels ? f.eval(s[j], levels[j]) : e;
        const bool kept = !kFilter || (!(s[j] < lows[j]) & !(s[j] > highs[j]));
        to0[j] += kept ? f.template part<0>(s[j], there) : T(0);
        if constexpr (Fold::kState > 1) to1[j] += kept ? f.template part<1>(s[j], there) : T(0);
        if constexpr (Fold::kState > 2) to2[j] += kept ? f.template part<2>(s[j], there) : T(0);
      }
    }
    sums[0] += sum0;
    sums[1] += sum1;
    sums[2] += sum2;
  }

  template <bool kBoth, bool kFilter, bool kLevels, typename Fold>
  PML_FAST_FLATTEN void slope_run(const Fold f, const T* s, int64_t i, const Segment& seg, const std::vector<T>* back,
                                  const std::vector<T>* there_back, T* h) const {
    constexpr bool kSecond = Fold::kBack > 1;
    const T *lows = columns_.low, *highs = columns_.high, *levels = columns_.levels;
    const T *firsts = there_back[0].data(), *seconds = there_back[1].data();
    const T low = kFilter ? rows_.low[i] : T(0), high = kFilter ? rows_.high[i] : T(0), own = rows_.level_of(i);
    const T first = back[0][i], second = kSecond ? back[1][i] : T(0);
#pragma omp simd
    for (int64_t j = seg.first; j < seg.last; ++j) {
      const T e = f.eval(s[j], own);
      const bool keep = !kFilter || (!(s[j] < low) & !(s[j] > high));
      T c = keep ? f.share(s[j], e, first, second) : T(0);
      if constexpr (kBoth) {
        const T there = kLevels ? f.eval(s[j], levels[j]) : e;
        const bool kept = !kFilter || (!(s[j] < lows[j]) & !(s[j] > highs[j]));
        c += kept ? f.share(s[j], there, firsts[j], kSecond ? seconds[j] : T(0)) : T(0);
      }
      h[j - seg.first] = f.factor(s[j]) * c;
    }
  }

  RowSettings<T> rows_, columns_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
