#include "knn.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "../runtime/parallel.h"
#include "radix_sort.h"
#include "scores.h"
#include "triplet_search.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

// Up to this many positives a comparison with each beats a search.
constexpr int64_t kLinear = 12;
// Histograms that neighbouring columns add to in turn: an addition need not wait for the one before it.
constexpr int64_t kCopies = 4;
constexpr int64_t kRows = 4;

PairLayout pair_layout(const KnnLayout& g) {
  PairLayout pairs{};
  pairs.x = g.x;
  pairs.y = g.y;
  pairs.n = g.n;
  pairs.m = g.m;
  pairs.d = g.d;
  pairs.distance = g.distance;
  return pairs;
}

template <typename T>
class Engine final : public KnnEngine {
 public:
  explicit Engine(const KnnLayout& layout) : g_(layout), scores_(pair_layout(layout)) {}

  void nearest(void* products, int64_t ld, int64_t i0, int64_t i1, int64_t k, void* order, int64_t* column) override {
    over_rows(products, ld, i0, i1,
              [&](int64_t i, T* z) { row_nearest(i, z, k, static_cast<T*>(order) + (i - i0) * k, column + (i - i0) * k); });
  }

  void ranks(void* products, int64_t ld, int64_t i0, int64_t i1, const int64_t* offset, int64_t* ranks) override {
    over_rows(products, ld, i0, i1, [&](int64_t i, T* z) { row_ranks(i, z, ranks + offset[i - i0]); });
  }

 private:
  template <typename F>
  void over_rows(void* products, int64_t ld, int64_t i0, int64_t i1, F&& body) const {
    parallel_for((i1 - i0 + kRows - 1) / kRows, g_.threads, [&](int64_t task) {
      for (int64_t i = i0 + task * kRows; i < std::min(i1, i0 + (task + 1) * kRows); ++i) {
        T* z = static_cast<T*>(products) + (i - i0) * ld;
        put_in_order(i, z);
        body(i, z);
      }
    });
  }

  void put_in_order(int64_t i, T* z) const {
    const T turn = g_.sign > 0 ? T(-1) : T(1), far = std::numeric_limits<T>::infinity();
    for (int64_t j0 = 0; j0 < g_.m; j0 += kBlock) {
      const int64_t j1 = std::min(g_.m, j0 + kBlock);
      scores_.from_products(z, i, j0, j1);
#pragma omp simd
      for (int64_t j = j0; j < j1; ++j) {
        const T value = turn * z[j];
        z[j] = value == value ? value : far;
      }
    }
  }

  // ---- neighbours

  using Candidate = std::pair<T, int64_t>;  // compared by its order, then by its column

  void row_nearest(int64_t i, const T* z, int64_t k, T* order, int64_t* column) const {
    if (k == 0) return;
    thread_local std::vector<Candidate> kept;
    kept.clear();
    const size_t room = static_cast<size_t>(std::min(g_.m, 2 * k + 64));
    bool full = false;
    T furthest = std::numeric_limits<T>::infinity();
    const auto keep_closest = [&] {
      std::nth_element(kept.begin(), kept.begin() + (k - 1), kept.end());
      kept.resize(k);
      furthest = kept[k - 1].first;
      full = true;
    };
    const auto scan = [&](int64_t from, int64_t to) {
      for (int64_t j0 = from; j0 < to; j0 += kBlock) {
        const int64_t j1 = std::min(to, j0 + kBlock);
        if (full) {
          const T bound = furthest;
          int closer = 0;
#pragma omp simd reduction(+ : closer)
          for (int64_t j = j0; j < j1; ++j) closer += z[j] < bound ? 1 : 0;
          if (closer == 0) continue;
        }
        for (int64_t j = j0; j < j1; ++j) {
          // A later column that ties with the furthest comes after it.
          if (full && !(z[j] < furthest)) continue;
          kept.emplace_back(z[j], j);
          if (kept.size() > room) keep_closest();
        }
      }
    };
    const int64_t own = g_.own_column(i);
    scan(0, own < 0 ? g_.m : own);
    if (own >= 0) scan(own + 1, g_.m);
    if (kept.size() > static_cast<size_t>(k)) keep_closest();
    std::sort(kept.begin(), kept.end());
    for (int64_t place = 0; place < k; ++place) {
      order[place] = kept[place].first;
      column[place] = kept[place].second;
    }
  }

  // ---- ranks

  void row_ranks(int64_t i, const T* z, int64_t* ranks) const {
    thread_local RadixSort<T> positives;
    positives.clear();
    const int64_t own = g_.own_column(i), start = g_.start[i], end = g_.end[i];
    for (int64_t j = start; j < end; ++j)
      if (j != own) positives.push(z[j], j);
    if (positives.size() == 0) return;
    positives.sort();
    for (int64_t k = 0; k < positives.size(); ++k) ranks[k] = k;
    if (positives.size() <= kLinear) {
      compare_with_each(positives, z, 0, start, ranks);
      compare_with_each(positives, z, end, g_.m, ranks);
    } else {
      search(positives, z, start, end, ranks);
    }
  }

  // Whether column j comes before a positive that it ties with.
  bool comes_first(int64_t j, int64_t positive) const { return g_.original(j) < g_.original(positive); }

  void compare_with_each(const RadixSort<T>& positives, const T* z, int64_t from, int64_t to, int64_t* ranks) const {
    constexpr int64_t kChunk = 4096;
    for (int64_t j0 = from; j0 < to; j0 += kChunk) {
      const int64_t j1 = std::min(to, j0 + kChunk);
      for (int64_t k = 0; k < positives.size(); ++k) {
        const T bound = positives.value(k);
        int32_t closer = 0, equal = 0;
#pragma omp simd reduction(+ : closer, equal)
        for (int64_t j = j0; j < j1; ++j) {
          closer += z[j] < bound ? 1 : 0;
          equal += z[j] == bound ? 1 : 0;
        }
        ranks[k] += closer;
        if (equal != 0)
          for (int64_t j = j0; j < j1; ++j) ranks[k] += z[j] == bound && comes_first(j, positives.payload(k)) ? 1 : 0;
      }
    }
  }

  // The first of the positives from k on, all in order and tied with column j at first, that column j comes before.
  int64_t after_ties(const RadixSort<T>& positives, const T* sorted, int64_t k, int64_t j) const {
    int64_t low = k, high = std::upper_bound(sorted + k, sorted + positives.size(), sorted[k]) - sorted;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (comes_first(j, positives.payload(middle)))
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }

  void search(const RadixSort<T>& positives, const T* z, int64_t start, int64_t end, int64_t* ranks) const {
    thread_local std::vector<T> sorted;
    thread_local std::vector<int32_t> before;
    thread_local Boundaries<T> boundaries;
    const int64_t count = positives.size();
    sorted.assign(Boundaries<T>::padded(count), std::numeric_limits<T>::infinity());
    for (int64_t k = 0; k < count; ++k) sorted[k] = positives.value(k);
    // A column comes before the first positive that is no closer, and all after it.
    const auto holds = [](T positive, T v) { return positive >= v; };
    boundaries.build(sorted.data(), count, T(0), holds);
    before.assign(kCopies * (count + 1), 0);
    const auto add = [&](int64_t from, int64_t to) {
      int32_t first[kBlock];
      for (int64_t j0 = from; j0 < to; j0 += kBlock) {
        const int64_t n = std::min(to - j0, kBlock);
        boundaries.find(z + j0, n, holds, first);
        for (int64_t j = 0; j < n; ++j) {
          int64_t k = first[j];
          if (sorted[k] == z[j0 + j] && k < count) k = after_ties(positives, sorted.data(), k, j0 + j);
          ++before[(j % kCopies) * (count + 1) + k];
        }
      }
    };
    add(0, start);
    add(end, g_.m);
    int64_t sum = 0;
    for (int64_t k = 0; k < count; ++k) {
      for (int64_t copy = 0; copy < kCopies; ++copy) sum += before[copy * (count + 1) + k];
      ranks[k] += sum;
    }
  }

  KnnLayout g_;
  Scores<T> scores_;
};

}  // namespace

std::unique_ptr<KnnEngine> make_knn_engine(const KnnLayout& layout, bool is_double) {
  if (is_double) return std::make_unique<Engine<double>>(layout);
  return std::make_unique<Engine<float>>(layout);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
