// Rows divided by their norms, and the way back for their gradient.
#pragma once

#include <algorithm>
#include <cmath>

#include "scores.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// F.normalize's own guard against a zero norm.
constexpr double kNormEps = 1e-12;

// Writes a row over its norm, which is returned: no less than the guard.
template <typename T>
T divide_by_norm(const T* from, int64_t d, T* to) {
  const T size = std::sqrt(dot(from, from, d)), norm = size < T(kNormEps) ? T(kNormEps) : size;
  for (int64_t k = 0; k < d; ++k) to[k] = from[k] / norm;
  return norm;
}

// The gradient by the row, given that by `unit`. A clamped norm is a constant: its row has no component to project out.
template <typename T>
void undivided_gradient(const T* grad, const T* unit, T norm, int64_t d, T* out) {
  const T along = norm <= T(kNormEps) ? T(0) : dot(grad, unit, d);
  for (int64_t k = 0; k < d; ++k) out[k] = (grad[k] - along * unit[k]) / norm;
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
