// Ascending order of floating-point numbers, equal ones in the order they came in. NaN goes to an end.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "../engine/ordered_bits.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// Byte by byte from the lowest: four (or eight) passes without a comparison to mispredict. A small payload moves faster.
template <typename T, typename Payload = int64_t>
class RadixSort {
 public:
  using Key = OrderedBits<T>;

  void clear() { items_.clear(); }
  void push(T value, Payload payload) { items_.emplace_back(key_of(value), payload); }
  int64_t size() const { return static_cast<int64_t>(items_.size()); }
  T value(int64_t k) const { return from_ordered_bits<T>(items_[k].first); }
  Payload payload(int64_t k) const { return items_[k].second; }

  void sort() {
    if (size() <= kInsertion) return insert();
    std::array<std::array<uint32_t, 256>, sizeof(Key)> count{};
    for (const Item& item : items_)
      for (size_t byte = 0; byte < sizeof(Key); ++byte) ++count[byte][(item.first >> (8 * byte)) & 255];
    other_.resize(items_.size());
    for (size_t byte = 0; byte < sizeof(Key); ++byte) {
      if (count[byte][(items_[0].first >> (8 * byte)) & 255] == items_.size()) continue;  // one digit for all
      uint32_t place = 0;
      for (uint32_t& slot : count[byte]) place += std::exchange(slot, place);
      for (const Item& item : items_) other_[count[byte][(item.first >> (8 * byte)) & 255]++] = item;
      items_.swap(other_);
    }
  }

 private:
  using Item = std::pair<Key, Payload>;
  static constexpr int64_t kInsertion = 24;

  void insert() {
    for (int64_t k = 1; k < size(); ++k) {
      const Item item = items_[k];
      int64_t at = k;
      for (; at > 0 && item.first < items_[at - 1].first; --at) items_[at] = items_[at - 1];
      items_[at] = item;
    }
  }

  // -0 is +0: the two are equal.
  static Key key_of(T value) { return ordered_bits(value == T(0) ? T(0) : value); }

  std::vector<Item> items_, other_;
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
