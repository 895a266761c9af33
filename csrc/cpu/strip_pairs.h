// The pairs of a strip of scores, row by row.
#pragma once

#include <algorithm>
#include <vector>

#include "../runtime/parallel.h"
#include "score_strip.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// Columns that are visited at a time, so that what is found out about them stays in the first-level cache.
constexpr int64_t kStripBlock = 512;

template <typename T>
class StripPairs {
 public:
  explicit StripPairs(const ScoreStrip& strip) : g_(strip) {}

  const T* scores(int64_t row) const { return static_cast<const T*>(g_.scores) + row * g_.columns; }
  const int64_t* ref_labels() const { return g_.ref_labels + g_.column; }
  int64_t label(int64_t row) const { return g_.labels[g_.first + row]; }

  // visit(c0, c1) for runs of columns that row `row` of the strip has pairs with, at most kStripBlock at a time.
  template <typename F>
  void runs(int64_t row, F&& visit) const {
    const int64_t own = g_.first + row - g_.column;
    const bool split = g_.itself && !g_.mirrored && own >= 0 && own < g_.columns;
    if (split) blocks(0, own, visit);
    blocks(split || g_.mirrored ? std::max<int64_t>(0, own + 1) : 0, g_.columns, visit);
  }

  // How many tasks share the rows out: a short strip is not worth a second thread.
  int tasks() const {
    constexpr int64_t kFewest = 1 << 15;
    if (g_.rows * g_.columns < kFewest) return 1;
    return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(g_.threads, g_.rows)));
  }

  // body(task, row): every tasks()-th row is one task's, as rows of mirrored pairs grow shorter.
  template <typename F>
  void for_rows(F&& body) const {
    const int64_t step = tasks();
    parallel_for(step, g_.threads, [&](int64_t task) {
      for (int64_t row = task; row < g_.rows; row += step) body(task, row);
    });
  }

 private:
  template <typename F>
  static void blocks(int64_t c0, int64_t c1, F&& visit) {
    for (; c0 < c1; c0 += kStripBlock) visit(c0, std::min(c1, c0 + kStripBlock));
  }

  ScoreStrip g_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
