#include "indexed.h"

#include <algorithm>

#include "../runtime/parallel.h"
#include "pairs_of_rows.h"
#include "scores.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

constexpr int64_t kPairs = 256;

template <typename T>
void score(const PairList& list, T* out) {
  const T *x = static_cast<const T*>(list.x), *y = static_cast<const T*>(list.y);
  parallel_for((list.count + kPairs - 1) / kPairs, list.count * list.d < 32768 ? 1 : list.threads, [&](int64_t task) {
    for (int64_t k = task * kPairs; k < std::min(list.count, (task + 1) * kPairs); ++k) {
      const T *a = x + list.i[k] * list.d, *b = y + list.j[k] * list.d;
      if (list.distance == Distance::kDot) {
        out[k] = dot(a, b, list.d);
      } else {
        const T square = squared_difference(a, b, list.d);
        out[k] = list.distance == Distance::kL2 ? std::sqrt(square) : square;
      }
    }
  });
}

template <typename T>
void add(const PairList& list, const T* scores, const T* grad_scores, bool columns, T* grad, int64_t rows) {
  const T* own = static_cast<const T*>(columns ? list.y : list.x);
  const T* other = static_cast<const T*>(columns ? list.x : list.y);
  const int64_t *mine = columns ? list.j : list.i, *theirs = columns ? list.i : list.j;
  const PairsOfRows pairs(mine, list.count, rows);
  constexpr int64_t kRows = 64;
  parallel_for((rows + kRows - 1) / kRows, list.count * list.d < 32768 ? 1 : list.threads, [&](int64_t task) {
    for (int64_t r = task * kRows; r < std::min(rows, (task + 1) * kRows); ++r)
      for (int64_t p = pairs.first[r]; p < pairs.first[r + 1]; ++p) {
        const int64_t k = pairs.place[p];
        const T c = over_difference(list.distance, grad_scores[k], scores[k]);
        add_pair(list.distance, c, own + r * list.d, other + theirs[k] * list.d, list.d, grad + r * list.d);
      }
  });
}

}  // namespace

void score_list(const PairList& list, void* scores, bool is_double) {
  is_double ? score(list, static_cast<double*>(scores)) : score(list, static_cast<float*>(scores));
}

void add_list_gradients(const PairList& list, const void* scores, const void* grad_scores, bool columns, void* grad,
                        int64_t rows, bool is_double) {
  if (is_double)
    add(list, static_cast<const double*>(scores), static_cast<const double*>(grad_scores), columns, static_cast<double*>(grad),
        rows);
  else
    add(list, static_cast<const float*>(scores), static_cast<const float*>(grad_scores), columns, static_cast<float*>(grad),
        rows);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
