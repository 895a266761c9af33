// Scalar maths that a compiler vectorises: no branches, no libm call in float, NaN and infinity kept.
#pragma once

// Compiled once for each instruction set: a name of its own keeps the linker from merging them.
#ifndef PML_FAST_ISA
  #define PML_FAST_ISA baseline
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace pml_fast {
namespace PML_FAST_ISA {

// exp(x) to about 1 ulp in float: x = n ln2 + r, a degree-6 polynomial in r, and n put into the exponent bits.
inline float exp_of(float x) {
  constexpr float kLog2e = 1.44269504088896341f, kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float n = (x * kLog2e + kRound) - kRound;
  const float r = (x - n * kLn2Hi) - n * kLn2Lo;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^(n-1), then doubled: n reaches 128 just below the overflow of exp itself.
  const int32_t bits = (static_cast<int32_t>(n) + 126) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  float y = p * scale * 2.0f;
  y = x < -87.0f ? 0.0f : y;
  return x > 88.72f ? std::numeric_limits<float>::infinity() : y;
}

inline double exp_of(double x) {
  return std::exp(x);
}

// 0 in the place of a number so small that its products with features are denormal, at which a multiplier stalls: next to the
// coefficients of a softmax, whose sum is 1, it is nothing.
template <typename T>
inline T without_denormals(T x) {
  constexpr T kLeast = std::numeric_limits<T>::min() * T(1 << 24);
  return std::abs(x) < kLeast ? T(0) : x;
}

// max(x, 0) that keeps NaN.
template <typename T>
inline T relu(T x) {
  return x < T(0) ? T(0) : x;
}

// log(1 + exp(x)) without overflow.
template <typename T>
inline T softplus(T x) {
  return (x > T(0) ? x : T(0)) + std::log1p(std::exp(-std::abs(x)));
}

// log(1 + y) for y in [0, 1], to about 1 ulp of the result in float: 2 atanh(y / (2 + y)), whose argument is at most 1/3.
inline float log1p_of(float y) {
  const float t = y / (2.0f + y), u = t * t;
  float p = 7.6923077e-2f;
  p = p * u + 9.0909091e-2f;
  p = p * u + 1.1111111e-1f;
  p = p * u + 1.4285714e-1f;
  p = p * u + 2.0e-1f;
  p = p * u + 3.3333333e-1f;
  return 2.0f * (t + t * u * p);
}

inline double log1p_of(double y) {
  return std::log1p(y);
}

// softplus in terms of what a compiler vectorises.
template <typename T>
inline T softplus_of(T x) {
  return relu(x) + log1p_of(exp_of(x > T(0) ? -x : x));
}

template <typename T>
inline T sigmoid(T x) {
  return T(1) / (T(1) + std::exp(-x));
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
