// Floating-point numbers as unsigned integers of the same order.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "math.h"

namespace pml_fast {
namespace PML_FAST_ISA {

template <typename T>
using OrderedBits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

// -0 comes before +0.
template <typename T>
OrderedBits<T> ordered_bits(T value) {
  constexpr OrderedBits<T> kSign = OrderedBits<T>{1} << (8 * sizeof(T) - 1);
  OrderedBits<T> bits;
  std::memcpy(&bits, &value, sizeof bits);
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}

template <typename T>
T from_ordered_bits(OrderedBits<T> key) {
  constexpr OrderedBits<T> kSign = OrderedBits<T>{1} << (8 * sizeof(T) - 1);
  const OrderedBits<T> bits = (key & kSign) != 0 ? key ^ kSign : ~key;
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
