// Histograms of scores: where a value belongs, what the sums over the bins are, and the losses that are computed of these.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "math.h"
#include "ordered_bits.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// `count` bins of width `delta` from `low` on; what lies outside belongs to the bin at that end. The compiled twin of Bins in
// pml_fast/engine/bins.py.
template <typename T>
struct Bins {
  Bins(double low, double delta, int64_t count)
      : low(T(low)), delta(T(delta)), high(T(low + static_cast<double>(count) * delta)), count(count) {}

  T low, delta, high;
  int64_t count;

  T through(T value) const { return (value - low) / delta; }

  // Bins and parts (how far a value is through its bin, from 0 to 1) of a run; a NaN belongs to the first and its part is one.
  void place(const T* values, int64_t n, int32_t* bin, T* part) const {
    const T top = T(count - 1), from = low, width = delta;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const T x = (values[j] - from) / width;
      const int32_t inside = static_cast<int32_t>(x > T(0) ? (x < top ? x : top) : T(0));
      const T rest = x - static_cast<T>(inside);
      bin[j] = inside;
      part[j] = rest < T(0) ? T(0) : rest > T(1) ? T(1) : rest;
    }
  }

  // Values become what their bins hold in a table.
  void look_up(T* values, int64_t n, const T* table) const {
    const T top = T(count - 1), from = low, width = delta;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const T x = (values[j] - from) / width;
      values[j] = table[static_cast<int32_t>(x > T(0) ? (x < top ? x : top) : T(0))];
    }
  }
};

// How many values are counted in one place, and their sum (or that of their parts).
struct Tally {
  double count = 0, sum = 0;
};

// The line of values cut where a bin ends: cell 0 lies before the bins, cell k is bin k - 1, the last lies after them. An edge
// is the least value of the cell that follows it, rounding included, so that a comparison tells what a division would.
template <typename T>
class Cells {
 public:
  explicit Cells(const Bins<T>& bins) : edge_(bins.count + 1) {
    for (int64_t b = 0; b <= bins.count; ++b) edge_[b] = least(bins, T(b));
  }

  // The same, but the end itself of the last bin belongs to it.
  Cells closed(const Bins<T>& bins) const {
    Cells cells = *this;
    cells.edge_.back() = std::nextafter(bins.high, std::numeric_limits<T>::infinity());
    return cells;
  }

  const T* edge(int64_t k) const { return edge_.data() + k; }

  // The number of edges up to a value; 0 for a NaN.
  int64_t of(T value) const {
    if (value != value) return 0;
    return std::upper_bound(edge_.begin(), edge_.end(), value) - edge_.begin();
  }

 private:
  // Rounding moves an edge by a few units of the largest number in it: a search in between, by bits, as the values lie closer
  // around 0.
  static T least(const Bins<T>& bins, T b) {
    const T guess = bins.low + b * bins.delta,
            span = 8 * std::numeric_limits<T>::epsilon() * (std::abs(bins.low) + b * bins.delta);
    OrderedBits<T> below = ordered_bits(guess - span), above = ordered_bits(guess + span);
    while (above - below > 1) {
      const OrderedBits<T> middle = below + (above - below) / 2;
      (bins.through(from_ordered_bits<T>(middle)) < b ? below : above) = middle;
    }
    return from_ordered_bits<T>(above);
  }

  std::vector<T> edge_;
};

// `sums` [3, count] of the cells' values: how many are in each bin, the sum of their parts, their sum.
template <typename T>
void sums_of_cells(const Bins<T>& bins, const Tally* cells, double* sums) {
  const int64_t n = bins.count;
  const double low = bins.low, delta = bins.delta;
  std::fill(sums, sums + 3 * n, 0.0);
  for (int64_t k = 0; k < n + 2; ++k) {
    const int64_t b = std::clamp<int64_t>(k - 1, 0, n - 1);
    const Tally& cell = cells[k];
    sums[b] += cell.count;
    sums[2 * n + b] += cell.sum;
    // Beyond the bins a part no longer grows.
    if (k == n + 1)
      sums[n + b] += cell.count;
    else if (k > 0)
      sums[n + b] += (cell.sum - low * cell.count) / delta - static_cast<double>(b) * cell.count;
    else if (cell.sum != cell.sum)
      sums[n] = cell.sum;
  }
}

// HistogramLoss of `sums` [2, 2, n]: counts and parts of the positive, then of the negative pairs. `slopes` [2, n] are its
// derivatives by either's parts.
inline double histogram_overlap(const double* sums, int64_t n, double* slopes) {
  const double *pos = sums, *neg = sums + 2 * n;
  double positives = 0, negatives = 0;
  for (int64_t b = 0; b < n; ++b) {
    positives += pos[b];
    negatives += neg[b];
  }
  std::fill(slopes, slopes + 2 * n, 0.0);
  if (!(positives > 0 && negatives > 0)) return 0.0;
  // What a pair has passed of its bin is its share of the bin's upper node.
  const auto node = [n](const double* side, int64_t k, double total) {
    return ((k < n ? side[k] - side[n + k] : 0.0) + (k > 0 ? side[n + k - 1] : 0.0)) / total;
  };
  double loss = 0, before = 0;
  for (int64_t k = 0; k <= n; ++k) {
    const double p = node(pos, k, positives), q = node(neg, k, negatives);
    before += p;
    loss += q * before;
    if (k < n) slopes[k] = -q / positives;
    if (k > 0) slopes[n + k - 1] = p / negatives;
  }
  return loss;
}

// DynamicSoftMarginLoss of `sums` [3, n] and the histogram `before` the batch; `after` [n] is the one to keep. `slopes` [2, n]
// are its derivatives by the parts and by the sums of values.
inline double dynamic_soft_margin(const double* sums, int64_t n, const double* before, double momentum, double* after,
                                  double* slopes) {
  const double *count = sums, *part = sums + n, *value = sums + 2 * n;
  double total = 0, learnt = 0, mass = 0;
  for (int64_t b = 0; b < n; ++b) {
    total += count[b];
    learnt += before[b];
  }
  std::fill(slopes, slopes + 2 * n, 0.0);
  std::copy_n(before, n, after);
  if (!(total > 0)) return 0.0;
  const double share = learnt != 0 ? momentum : 1.0;
  std::vector<double> weight(n);
  for (int64_t b = 0; b < n; ++b) {
    // What a difference has passed of its bin belongs to the next one; there is none after the last.
    const double added = count[b] - (b + 1 < n ? part[b] : 0.0) + (b > 0 ? part[b - 1] : 0.0);
    weight[b] = (1 - share) * before[b] + share * added;
    mass += weight[b];
  }
  double loss = 0, cumulative = 0;
  bool sound = true;
  for (int64_t b = 0; b < n; ++b) {
    weight[b] /= mass;
    sound &= std::isfinite(weight[b]);
    cumulative += weight[b];
    loss += cumulative * value[b];
    slopes[n + b] = cumulative / total;
    // The mass is the same wherever in its bin a difference lies.
    if (b + 1 < n) slopes[b] = -share / mass * value[b] / total;
  }
  if (sound) std::copy(weight.begin(), weight.end(), after);
  return loss / total;
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
