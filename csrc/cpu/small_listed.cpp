#include <algorithm>
#include <cmath>
#include <vector>

#include "small.h"
#include "unit_rows.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

// The rows that listed pairs compare.
template <typename T>
class ListedRows {
 public:
  explicit ListedRows(const SmallPairs& pairs) : p_(pairs), rows_(static_cast<const T*>(pairs.x)) {
    if (!p_.normalize) return;
    unit_.resize(p_.n * p_.d);
    norm_.resize(p_.n);
    for (int64_t i = 0; i < p_.n; ++i) norm_[i] = divide_by_norm(rows_ + i * p_.d, p_.d, unit_.data() + i * p_.d);
    rows_ = unit_.data();
  }

  bool inside() const {
    for (int64_t k = 0; k < p_.count; ++k)
      if (p_.i[k] < 0 || p_.i[k] >= p_.n || p_.j[k] < 0 || p_.j[k] >= p_.n) return false;
    return true;
  }

  T score(int64_t k) const {
    const T *own = row(p_.i[k]), *other = row(p_.j[k]);
    if (p_.distance == Distance::kDot) return dot(own, other, p_.d);
    const T square = squared_difference(own, other, p_.d);
    return p_.distance == Distance::kL2 ? std::sqrt(square) : square;
  }

  void gradients(const T* grad, T* dx) const {
    std::vector<T> sums(p_.n * p_.d, T(0));
    for (int64_t k = 0; k < p_.count; ++k) {
      const int64_t i = p_.i[k], j = p_.j[k];
      const T factor = over_difference(p_.distance, grad[k], p_.distance == Distance::kL2 ? score(k) : T(0));
      add_pair(p_.distance, factor, row(i), row(j), p_.d, sums.data() + i * p_.d);
      add_pair(p_.distance, factor, row(j), row(i), p_.d, sums.data() + j * p_.d);
    }
    for (int64_t i = 0; i < p_.n; ++i) {
      const T* sum = sums.data() + i * p_.d;
      if (p_.normalize)
        undivided_gradient(sum, row(i), norm_[i], p_.d, dx + i * p_.d);
      else
        std::copy_n(sum, p_.d, dx + i * p_.d);
    }
  }

 private:
  const T* row(int64_t i) const { return rows_ + i * p_.d; }

  const SmallPairs& p_;
  const T* rows_;
  std::vector<T> unit_, norm_;
};

template <typename T>
bool score_pairs(const SmallPairs& pairs, T* scores) {
  const ListedRows<T> rows(pairs);
  if (!rows.inside()) return false;
  for (int64_t k = 0; k < pairs.count; ++k) scores[k] = rows.score(k);
  return true;
}

template <typename T>
void pair_gradients(const SmallPairs& pairs, const T* grad, T* dx) {
  // Then nothing was compared.
  if (std::all_of(grad, grad + pairs.count, [](T g) { return g == T(0); }))
    std::fill_n(dx, pairs.n * pairs.d, T(0));
  else
    ListedRows<T>(pairs).gradients(grad, dx);
}

// The reduced loss of listed triplets and what it moves by each score: anchor-positive, then anchor-negative.
template <typename T>
T reduce_triplets(const SmallTriplets& list, const T* scores, T* grad) {
  const int64_t count = list.count;
  const T margin = T(list.margin), sign = T(list.sign);
  T total = 0;
  int64_t number = 0;
  for (int64_t k = 0; k < count; ++k) {
    if (list.keep != nullptr && !list.keep[k]) {
      grad[count + k] = T(0);
      continue;
    }
    const T violation = sign * (scores[count + k] - scores[k]) + margin;
    const T loss = list.smooth ? softplus(violation) : relu(violation);
    // Written so that a NaN is kept, and seen.
    const bool kept = !((loss <= T(list.limits.low)) | (loss >= T(list.limits.high)));
    const T slope = list.smooth ? sigmoid(violation) : (violation > T(0) ? T(1) : T(0));
    if (kept) total += loss, ++number;
    grad[count + k] = kept ? sign * slope : T(0);
  }
  const T scale = list.fold == "sum" ? T(1) : (number > 0 ? T(1) / T(number) : T(0));
  for (int64_t k = 0; k < count; ++k) {
    grad[count + k] *= scale;
    grad[k] = -grad[count + k];
  }
  return total * scale;
}

template <typename T>
bool run_triplets(const SmallPairs& pairs, const SmallTriplets& list, T* loss, T* dx) {
  const ListedRows<T> rows(pairs);
  if (!rows.inside()) return false;
  std::vector<T> scores(pairs.count), grad(pairs.count);
  for (int64_t k = 0; k < pairs.count; ++k) scores[k] = rows.score(k);
  *loss = reduce_triplets(list, scores.data(), grad.data());
  if (dx == nullptr) return true;
  // Where nothing is violated, 0 times a row that is not finite is no gradient.
  if (*loss == T(0))
    std::fill_n(dx, pairs.n * pairs.d, T(0));
  else
    rows.gradients(grad.data(), dx);
  return true;
}

}  // namespace

bool small_pair_scores(const SmallPairs& pairs, void* scores, bool is_double) {
  return is_double ? score_pairs(pairs, static_cast<double*>(scores)) : score_pairs(pairs, static_cast<float*>(scores));
}

void small_pair_gradients(const SmallPairs& pairs, const void* grad, void* dx, bool is_double) {
  if (is_double)
    pair_gradients(pairs, static_cast<const double*>(grad), static_cast<double*>(dx));
  else
    pair_gradients(pairs, static_cast<const float*>(grad), static_cast<float*>(dx));
}

bool small_listed_triplets(const SmallPairs& pairs, const SmallTriplets& list, void* loss, void* dx, bool is_double) {
  return is_double ? run_triplets(pairs, list, static_cast<double*>(loss), static_cast<double*>(dx))
                   : run_triplets(pairs, list, static_cast<float*>(loss), static_cast<float*>(dx));
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
