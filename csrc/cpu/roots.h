// Square roots and reciprocals of many numbers. The instructions for them take a processor longer than all else that is done
// with a score, so that where a vector's estimate is good for half of the digits one step of Newton gives the others.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__AVX512F__) && defined(__AVX512DQ__)
  #include <immintrin.h>
#endif

namespace pml_fast {
namespace PML_FAST_ISA {

template <typename T>
void square_roots(const T* from, int64_t count, T* to) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) to[j] = std::sqrt(from[j]);
}

// Of 0 it is 0.
template <typename T>
void reciprocals(const T* from, int64_t count, T* to) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) to[j] = from[j] == T(0) ? T(0) : T(1) / from[j];
}

#if defined(__AVX512F__) && defined(__AVX512DQ__)

// What the estimates below know no step from: zeros and positive infinity.
constexpr int kEdges = 0x02 | 0x04 | 0x08;

inline __mmask16 lanes(int64_t count) {
  return count >= 16 ? __mmask16(0xffff) : __mmask16((1u << count) - 1);
}

// Within 1 ulp of the root of a number that is not denormal.
inline void square_roots(const float* from, int64_t count, float* to) {
  const __m512 half = _mm512_set1_ps(0.5f);
  for (int64_t j = 0; j < count; j += 16) {
    const __mmask16 in = lanes(count - j);
    const __m512 x = _mm512_maskz_loadu_ps(in, from + j), y = _mm512_rsqrt14_ps(x), s = _mm512_mul_ps(x, y);
    const __m512 root = _mm512_fmadd_ps(_mm512_mul_ps(half, y), _mm512_fnmadd_ps(s, s, x), s);
    _mm512_mask_storeu_ps(to + j, in, _mm512_mask_mov_ps(root, _mm512_fpclass_ps_mask(x, kEdges), x));
  }
}

// Within 1 ulp where neither the number nor its reciprocal is denormal.
inline void reciprocals(const float* from, int64_t count, float* to) {
  const __m512 one = _mm512_set1_ps(1.0f);
  for (int64_t j = 0; j < count; j += 16) {
    const __mmask16 in = lanes(count - j);
    const __m512 x = _mm512_maskz_loadu_ps(in, from + j), y = _mm512_rcp14_ps(x);
    const __m512 inverse = _mm512_fmadd_ps(y, _mm512_fnmadd_ps(x, y, one), y);
    _mm512_mask_storeu_ps(to + j, in, _mm512_mask_mov_ps(inverse, _mm512_fpclass_ps_mask(x, kEdges), _mm512_setzero_ps()));
  }
}

#endif

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
