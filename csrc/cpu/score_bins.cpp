#include <algorithm>
#include <limits>
#include <vector>

#include "strip_pairs.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

// The bins of one side: guessed by arithmetic, and put right by the edges themselves.
template <typename T>
class Edges {
 public:
  Edges(const ScoreBins& bins, int side)
      : edges_(static_cast<const T*>(bins.edges) + side * (bins.count + 1)), last_(bins.count - 1) {
    const T width = edges_[bins.count] - edges_[0];
    scale_ = width > T(0) ? T(bins.count) / width : T(0);
  }

  int64_t bin(T value) const {
    const T x = (value - edges_[0]) * scale_;
    // Written so that a NaN is bin 0.
    int64_t k = !(x > T(0)) ? 0 : x >= T(last_) ? last_ : static_cast<int64_t>(x);
    while (k < last_ && value >= edges_[k + 1]) ++k;
    while (k > 0 && value < edges_[k]) --k;
    return k;
  }

 private:
  const T* edges_;
  int64_t last_;
  T scale_;
};

template <typename T>
void widen(const ScoreStrip& strip, T* low, T* high) {
  struct Range {
    T low[2] = {std::numeric_limits<T>::infinity(), std::numeric_limits<T>::infinity()};
    T high[2] = {-std::numeric_limits<T>::infinity(), -std::numeric_limits<T>::infinity()};
  };
  const StripPairs<T> pairs(strip);
  std::vector<Range> ranges(pairs.tasks());
  pairs.for_rows([&](int64_t task, int64_t row) {
    const T* s = pairs.scores(row);
    const int64_t *labels = pairs.ref_labels(), label = pairs.label(row);
    pairs.runs(row, [&](int64_t c0, int64_t c1) {
      for (int side = 0; side < 2; ++side) {
        T least = ranges[task].low[side], most = ranges[task].high[side];
#pragma omp simd reduction(min : least) reduction(max : most)
        for (int64_t c = c0; c < c1; ++c) {
          const bool mine = (labels[c] == label) == (side == 0);
          least = mine && s[c] < least ? s[c] : least;
          most = mine && s[c] > most ? s[c] : most;
        }
        ranges[task].low[side] = least;
        ranges[task].high[side] = most;
      }
    });
  });
  for (const Range& range : ranges)
    for (int side = 0; side < 2; ++side) {
      low[side] = std::min(low[side], range.low[side]);
      high[side] = std::max(high[side], range.high[side]);
    }
}

template <typename T>
void count(const ScoreStrip& strip, const ScoreBins& bins, int64_t* counts) {
  const StripPairs<T> pairs(strip);
  const Edges<T> edges[2] = {{bins, 0}, {bins, 1}};
  std::vector<std::vector<int64_t>> tables(pairs.tasks(), std::vector<int64_t>(2 * bins.count, 0));
  pairs.for_rows([&](int64_t task, int64_t row) {
    const T* s = pairs.scores(row);
    const int64_t *labels = pairs.ref_labels(), label = pairs.label(row);
    int64_t* table = tables[task].data();
    pairs.runs(row, [&](int64_t c0, int64_t c1) {
      for (int64_t c = c0; c < c1; ++c) {
        if (s[c] != s[c]) continue;
        const int side = labels[c] == label ? 0 : 1;
        ++table[side * bins.count + edges[side].bin(s[c])];
      }
    });
  });
  for (const std::vector<int64_t>& table : tables)
    for (int64_t k = 0; k < 2 * bins.count; ++k) counts[k] += table[k];
}

// Where the next number of each bin is, so that most pairs cost one comparison.
class Search {
 public:
  Search(const DrawnPairs& drawn, int64_t bins) : drawn_(drawn), wanted_(bins) {
    for (int64_t bin = 0; bin < bins; ++bin) look_ahead(bin);
  }

  void visit(int64_t bin, int64_t anchor, int64_t other) {
    const int64_t rank = drawn_.seen[bin]++;
    for (; rank == wanted_[bin]; look_ahead(bin)) {
      const int64_t draw = drawn_.next[bin]++;
      drawn_.anchor[draw] = anchor;
      drawn_.other[draw] = other;
    }
  }

 private:
  void look_ahead(int64_t bin) {
    const int64_t draw = drawn_.next[bin];
    wanted_[bin] = draw < drawn_.start[bin + 1] ? drawn_.rank[draw] : -1;
  }

  DrawnPairs drawn_;
  std::vector<int64_t> wanted_;
};

// A pair's number is how many of its bin came before it: one thread counts.
template <typename T>
void locate(const ScoreStrip& strip, const ScoreBins& bins, const DrawnPairs (&drawn)[2]) {
  const StripPairs<T> pairs(strip);
  const Edges<T> edges[2] = {{bins, 0}, {bins, 1}};
  Search searches[2] = {{drawn[0], bins.count}, {drawn[1], bins.count}};
  for (int64_t row = 0; row < strip.rows; ++row) {
    const T* s = pairs.scores(row);
    const int64_t *labels = pairs.ref_labels(), label = pairs.label(row);
    pairs.runs(row, [&](int64_t c0, int64_t c1) {
      for (int64_t c = c0; c < c1; ++c) {
        if (s[c] != s[c]) continue;
        const int side = labels[c] == label ? 0 : 1;
        searches[side].visit(edges[side].bin(s[c]), strip.first + row, strip.column + c);
      }
    });
  }
}

}  // namespace

void widen_range(const ScoreStrip& strip, void* low, void* high) {
  if (strip.is_double)
    widen(strip, static_cast<double*>(low), static_cast<double*>(high));
  else
    widen(strip, static_cast<float*>(low), static_cast<float*>(high));
}

void count_bins(const ScoreStrip& strip, const ScoreBins& bins, int64_t* counts) {
  if (strip.is_double)
    count<double>(strip, bins, counts);
  else
    count<float>(strip, bins, counts);
}

void locate_pairs(const ScoreStrip& strip, const ScoreBins& bins, const DrawnPairs (&drawn)[2]) {
  if (strip.is_double)
    locate<double>(strip, bins, drawn);
  else
    locate<float>(strip, bins, drawn);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
