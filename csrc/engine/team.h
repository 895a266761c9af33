// The threads that work on one row together. The same row functions run on a CUDA block and, one thread in a team of its own,
// on the host, where they are tested.
//
// A row function is a sequence of `each` loops whose bodies write to places of their own (or `add` to shared counters), with
// `sync` between a write and a read by another thread.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
  #define PML_FAST_HD __host__ __device__ __forceinline__
#else
  #define PML_FAST_HD inline
#endif

namespace pml_fast {

// One host thread. `backwards` takes every loop from its end: what a row function computes must not depend on it.
class SerialTeam {
 public:
  explicit SerialTeam(bool backwards = false) : backwards_(backwards) {}

  template <typename F>
  PML_FAST_HD void each(int64_t count, F&& body) const {
    for (int64_t k = 0; k < count; ++k) body(backwards_ ? count - 1 - k : k);
  }

  template <typename F>
  PML_FAST_HD void once(F&& body) const {
    body();
  }

  PML_FAST_HD void sync() const {}
  PML_FAST_HD void add(int32_t* at, int32_t by) const { *at += by; }
  // The next free place, in the order in which threads ask.
  PML_FAST_HD int32_t take(int32_t* at) const { return (*at)++; }

  template <typename V>
  PML_FAST_HD V sum(V value) const {
    return value;
  }

  // emit(k, place) of every k in 0 .. count that is kept, in order, `place` counting on from `first`.
  template <typename Keep, typename Emit>
  PML_FAST_HD void compact(int64_t count, int64_t first, Keep&& keep, Emit&& emit) const {
    for (int64_t k = 0; k < count; ++k)
      if (keep(k)) emit(k, first++);
  }

 private:
  bool backwards_;
};

// A team sums runs of values in so many pieces.
constexpr int64_t kPieces = 32;

// values[k] becomes the sum of all values up to and including it. `partial` has kPieces places that the team shares.
template <typename Team>
PML_FAST_HD void running_sums(const Team& team, int32_t* values, int64_t count, int32_t* partial) {
  const int64_t length = (count + kPieces - 1) / kPieces;
  const auto last = [=](int64_t piece) { return (piece + 1) * length < count ? (piece + 1) * length : count; };
  team.sync();
  team.each(kPieces, [&](int64_t piece) {
    int32_t total = 0;
    for (int64_t k = piece * length; k < last(piece); ++k) total += values[k];
    partial[piece] = total;
  });
  team.sync();
  team.once([&] {
    int32_t before = 0;
    for (int64_t piece = 0; piece < kPieces; ++piece) {
      const int32_t own = partial[piece];
      partial[piece] = before;
      before += own;
    }
  });
  team.sync();
  team.each(kPieces, [&](int64_t piece) {
    int32_t total = partial[piece];
    for (int64_t k = piece * length; k < last(piece); ++k) values[k] = total += values[k];
  });
  team.sync();
}

// Ascending order of `size` keys, a power of two: a bitonic network, whose steps do not depend on the keys.
template <typename Team, typename Key>
PML_FAST_HD void sort_keys(const Team& team, Key* keys, int64_t size) {
  for (int64_t run = 2; run <= size; run *= 2)
    for (int64_t step = run / 2; step > 0; step /= 2) {
      team.sync();
      team.each(size / 2, [&](int64_t k) {
        const int64_t low = 2 * step * (k / step) + k % step, high = low + step;
        const bool ascending = (low & run) == 0;
        const Key a = keys[low], b = keys[high];
        if ((b < a) == ascending) {
          keys[low] = b;
          keys[high] = a;
        }
      });
    }
  team.sync();
}

// Bits that order as the numbers do, -0 as +0; a NaN goes to an end.
PML_FAST_HD uint32_t order_bits(float value) {
  value = value == 0.0f ? 0.0f : value;
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

PML_FAST_HD float number_of(uint32_t order) {
  const uint32_t bits = (order >> 31) != 0 ? order ^ 0x80000000u : ~order;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace pml_fast
