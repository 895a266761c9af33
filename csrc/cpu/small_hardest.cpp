#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "small.h"
#include "small_step.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

template <typename T>
constexpr T kInfinite = std::numeric_limits<T>::infinity();

// The pairs of one side, each seen once for itself and its mirror image: how hard each is, and where its rows are in the batch.
template <typename T>
struct Side {
  std::vector<T> hardness;
  std::vector<int64_t> i, j;
  int64_t total = 0;  // with those whose score is not a number, which is never mined
};

// Where the share of a side ends: what lies around it, and which rows keep what ties with it.
template <typename T>
class Cut {
 public:
  Cut(const Side<T>& side, double share, int64_t n) : ties_(n, 0) {
    const int64_t counted = static_cast<int64_t>(side.hardness.size());
    const int64_t left = std::min(static_cast<int64_t>(std::ceil(2.0 * side.total * share)), 2 * counted);
    if (left == 0) return;
    std::vector<T> sorted(side.hardness);
    std::nth_element(sorted.begin(), sorted.begin() + (left - 1) / 2, sorted.end(), std::greater<T>());
    const T at = sorted[(left - 1) / 2];
    T below = -kInfinite<T>, above = kInfinite<T>;
    bool any_below = false;
    int64_t harder = 0;
    for (int64_t k = 0; k < counted; ++k) {
      const T own = side.hardness[k];
      if (own < at) below = std::max(below, own), any_below = true;
      if (own > at) above = std::min(above, own), ++harder;
      if (own == at) ++ties_[side.i[k]], ++ties_[side.j[k]];
    }
    wanted_ = left - 2 * harder;
    easier_ = any_below ? between(below, at) : -kInfinite<T>;
    closed_ = harder == 0;
    harder_ = closed_ ? at : between(at, above);
  }

  // The smallest hardness that each row keeps, in order: the first rows keep their ties, as many as are wanted.
  template <typename F>
  void each_row(F&& visit) {
    int64_t before = 0;
    for (size_t row = 0; row < ties_.size(); ++row) {
      const bool keeps = before < wanted_;
      visit(static_cast<int64_t>(row), keeps ? easier_ : harder_, !keeps && closed_);
      if (keeps) last_ = static_cast<int64_t>(row), kept_ += ties_[row];
      before += ties_[row];
    }
  }

  // After each_row: the last row that keeps ties, -1 for none, and how many of these are too many.
  int64_t last() const { return last_; }
  int64_t surplus() const { return kept_ - wanted_; }

 private:
  // Above `low` and not above `high`: halfway, so that no rounding of a score crosses it.
  static T between(T low, T high) {
    const T half = low / 2 + high / 2;
    return half > low ? half : high;
  }

  std::vector<int64_t> ties_;
  T easier_ = -kInfinite<T>, harder_ = kInfinite<T>;
  bool closed_ = true;
  int64_t wanted_ = 0, kept_ = 0, last_ = -1;
};

template <typename T>
void collect(const SmallBatch& batch, Side<T> (&sides)[2]) {
  Step<T> step(batch);
  const PairLayout layout = step.layout();
  const Scores<T> scores(layout);
  const int64_t n = batch.n;
  T* tile = step.products();
  for (Side<T>& side : sides) {
    side.hardness.reserve(n * n / 2);
    side.i.reserve(n * n / 2);
    side.j.reserve(n * n / 2);
  }
  for (int64_t i = 0; i < n; ++i) {
    T* s = tile + i * n;
    for (int64_t j0 = i + 1; j0 < n; j0 += kBlock) scores.from_products(s, i, j0, std::min(n, j0 + kBlock));
    for (int64_t j = i + 1; j < n; ++j) {
      // Adding 0 makes one zero of the two.
      const bool positive = j >= layout.start[i] && j < layout.end[i];
      const T signed_score = T(batch.sign) * s[j] + T(0), own = positive ? T(0) - signed_score : signed_score;
      Side<T>& side = sides[positive ? 0 : 1];
      ++side.total;
      if (std::isnan(own)) continue;
      side.hardness.push_back(own);
      side.i.push_back(step.place(i));
      side.j.push_back(step.place(j));
    }
  }
}

template <typename T>
void hardest(const SmallBatch& batch, double share, T* rule, int64_t* cut) {
  Side<T> sides[2];
  collect(batch, sides);
  for (int side = 0; side < 2; ++side) {
    T *low = rule + 2 * side * batch.n, *high = low + batch.n;
    // Hard positives have small scores, signed as similarities are, hard negatives large ones.
    const bool flipped = (side == 0) == (batch.sign > 0);
    Cut<T> at(sides[side], share, batch.n);
    at.each_row([&](int64_t row, T bound, bool closed) {
      low[row] = closed ? kInfinite<T> : (flipped ? -kInfinite<T> : bound);
      high[row] = closed ? -kInfinite<T> : (flipped ? -bound : kInfinite<T>);
    });
    cut[side] = at.last();
    cut[2 + side] = at.surplus();
  }
}

}  // namespace

void small_hardest(const SmallBatch& batch, double share, void* rule, int64_t* cut, bool is_double) {
  if (is_double)
    hardest(batch, share, static_cast<double*>(rule), cut);
  else
    hardest(batch, share, static_cast<float*>(rule), cut);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
