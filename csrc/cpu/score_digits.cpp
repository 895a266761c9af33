#include <algorithm>
#include <limits>
#include <vector>

#include "../engine/ordered_bits.h"
#include "strip_pairs.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

constexpr int kDigitBits = 16;
constexpr uint32_t kDigits = 1u << kDigitBits, kNotCounted = ~0u;

template <typename T>
constexpr OrderedBits<T> kTopBit = OrderedBits<T>{1} << (8 * sizeof(T) - 1);

// Keys of either side of the interface: signed there, unsigned here, in the same order.
template <typename T>
int64_t signed_key(T value) {
  const OrderedBits<T> key = ordered_bits(value) ^ kTopBit<T>;
  return sizeof(T) == 4 ? static_cast<int32_t>(key) : static_cast<int64_t>(key);
}

template <typename T>
T value_of(int64_t key) {
  return from_ordered_bits<T>(static_cast<OrderedBits<T>>(key) ^ kTopBit<T>);
}

// Adding 0 makes one zero of the two.
template <typename T>
T hardness(T score, T sign, bool positive) {
  const T own = sign * score + T(0);
  return positive ? T(0) - own : own;
}

template <typename T>
class DigitCounts {
 public:
  DigitCounts(const ScoreStrip& strip, double sign, int shift, const int64_t* prefix)
      : pairs_(strip), sign_(T(sign)), shift_(shift), all_(prefix == nullptr) {
    if (all_) return;
    const OrderedBits<T> top = OrderedBits<T>{1} << (8 * sizeof(T) - 1 - kDigitBits - shift);
    for (int side = 0; side < 2; ++side) prefix_[side] = (static_cast<OrderedBits<T>>(prefix[side]) ^ top) & (2 * top - 1);
  }

  void add_to(int64_t* counts, int64_t* total) const {
    struct Table {
      std::vector<uint32_t> count = std::vector<uint32_t>(2 * kDigits, 0u);
      int64_t total[2] = {0, 0};
    };
    std::vector<Table> tables(pairs_.tasks());
    pairs_.for_rows([&](int64_t task, int64_t row) { count_row(row, tables[task].count.data(), tables[task].total); });
    for (const Table& table : tables) {
      for (uint32_t k = 0; k < 2 * kDigits; ++k) counts[k] += table.count[k];
      for (int side = 0; side < 2; ++side) total[side] += table.total[side];
    }
  }

 private:
  void count_row(int64_t row, uint32_t* count, int64_t* total) const {
    const T* s = pairs_.scores(row);
    const int64_t *labels = pairs_.ref_labels(), label = pairs_.label(row);
    uint32_t place[kStripBlock];
    pairs_.runs(row, [&](int64_t c0, int64_t c1) {
      int64_t positives = 0;
#pragma omp simd reduction(+ : positives)
      for (int64_t c = c0; c < c1; ++c) {
        const bool positive = labels[c] == label;
        const T own = hardness(s[c], sign_, positive);
        const OrderedBits<T> digits = ordered_bits(own) >> shift_;
        const bool counted = own == own && (all_ || (digits >> kDigitBits) == (positive ? prefix_[0] : prefix_[1]));
        const uint32_t digit = static_cast<uint32_t>(digits) & (kDigits - 1);
        place[c - c0] = counted ? digit + (positive ? 0u : kDigits) : kNotCounted;
        positives += positive ? 1 : 0;
      }
      for (int64_t k = 0; k < c1 - c0; ++k)
        if (place[k] != kNotCounted) ++count[place[k]];
      total[0] += positives;
      total[1] += c1 - c0 - positives;
    });
  }

  StripPairs<T> pairs_;
  T sign_;
  int shift_;
  bool all_;
  OrderedBits<T> prefix_[2] = {0, 0};
};

// The next easier and the next harder pair of a side.
template <typename T>
struct Around {
  T below = -std::numeric_limits<T>::infinity(), above = std::numeric_limits<T>::infinity();
  bool any_below = false, any_above = false;
};

template <typename T>
class Neighbours {
 public:
  Neighbours(const ScoreStrip& strip, double sign, const int64_t* key, int64_t n)
      : g_(strip), pairs_(strip), sign_(T(sign)), at_{value_of<T>(key[0]), value_of<T>(key[1])}, n_(n) {}

  void find(int64_t* ties, int64_t* below, int64_t* above) const {
    struct Found {
      Around<T> around[2];
      std::vector<int64_t> ties;
    };
    std::vector<Found> found(pairs_.tasks());
    for (Found& own : found) own.ties.assign(2 * n_, 0);
    pairs_.for_rows([&](int64_t task, int64_t row) { visit_row(row, found[task].around, found[task].ties.data()); });
    for (const Found& own : found) {
      for (int64_t k = 0; k < 2 * n_; ++k) ties[k] += own.ties[k];
      for (int side = 0; side < 2; ++side) {
        const Around<T>& around = own.around[side];
        if (around.any_below) below[side] = std::max(below[side], signed_key(around.below));
        if (around.any_above) above[side] = std::min(above[side], signed_key(around.above));
      }
    }
  }

 private:
  void visit_row(int64_t row, Around<T>* around, int64_t* ties) const {
    pairs_.runs(row, [&](int64_t c0, int64_t c1) {
      int tied = 0;
      for (int side = 0; side < 2; ++side) tied += visit(row, c0, c1, side, around[side]);
      if (tied != 0) count_ties(row, c0, c1, ties);
    });
  }

  int visit(int64_t row, int64_t c0, int64_t c1, int side, Around<T>& around) const {
    const T* s = pairs_.scores(row);
    const int64_t *labels = pairs_.ref_labels(), label = pairs_.label(row);
    const T at = at_[side];
    const bool positive = side == 0;
    T below = around.below, above = around.above;
    int tied = 0, easier = 0, harder = 0;
#pragma omp simd reduction(max : below) reduction(min : above) reduction(+ : tied, easier, harder)
    for (int64_t c = c0; c < c1; ++c) {
      const T own = hardness(s[c], sign_, positive);
      const bool mine = (labels[c] == label) == positive;
      const bool less = mine & (own < at), more = mine & (own > at);
      below = less && own > below ? own : below;
      above = more && own < above ? own : above;
      easier += less ? 1 : 0;
      harder += more ? 1 : 0;
      tied += mine & (own == at) ? 1 : 0;
    }
    around.below = below;
    around.above = above;
    around.any_below |= easier != 0;
    around.any_above |= harder != 0;
    return tied;
  }

  void count_ties(int64_t row, int64_t c0, int64_t c1, int64_t* ties) const {
    const T* s = pairs_.scores(row);
    const int64_t *labels = pairs_.ref_labels(), label = pairs_.label(row);
    for (int64_t c = c0; c < c1; ++c) {
      const int side = labels[c] == label ? 0 : 1;
      if (!(hardness(s[c], sign_, side == 0) == at_[side])) continue;
      ++ties[side * n_ + g_.first + row];
      if (g_.mirrored) ++ties[side * n_ + g_.column + c];
    }
  }

  ScoreStrip g_;
  StripPairs<T> pairs_;
  T sign_, at_[2];
  int64_t n_;
};

}  // namespace

void count_digits(const ScoreStrip& strip, double sign, int shift, const int64_t* prefix, int64_t* counts, int64_t* total) {
  if (strip.is_double)
    DigitCounts<double>(strip, sign, shift, prefix).add_to(counts, total);
  else
    DigitCounts<float>(strip, sign, shift, prefix).add_to(counts, total);
}

void find_neighbours(const ScoreStrip& strip, double sign, const int64_t* key, int64_t n, int64_t* ties, int64_t* below,
                     int64_t* above) {
  if (strip.is_double)
    Neighbours<double>(strip, sign, key, n).find(ties, below, above);
  else
    Neighbours<float>(strip, sign, key, n).find(ties, below, above);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
