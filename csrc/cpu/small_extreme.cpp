#include <algorithm>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "small.h"
#include "small_step.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

template <typename T>
void run_extreme(const SmallBatch& batch, bool positive, bool largest, T* value, int64_t* index) {
  Step<T> step(batch);
  const int64_t n = batch.n;
  const auto engine = make_pair_engine("", {}, 1.0, {}, step.layout(), 0.0, std::is_same_v<T, double>);
  const T worst = largest ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::infinity();
  std::vector<T> best(n, worst);
  std::vector<int64_t> at(n, -1);
  if (positive) {
    engine->score_positives();
    engine->positive_extreme(largest, best.data(), at.data());
  } else {
    engine->fold_extreme(step.products(), n, 0, n, 0, n, n, largest, best.data(), at.data(), best.data(), at.data());
  }
  for (int64_t i = 0; i < n; ++i) {
    value[step.place(i)] = best[i];
    index[step.place(i)] = at[i] < 0 ? -1 : step.place(at[i]);
  }
}

}  // namespace

void small_extreme(const SmallBatch& batch, bool positive, bool largest, void* value, int64_t* index, bool is_double) {
  if (is_double)
    run_extreme(batch, positive, largest, static_cast<double*>(value), index);
  else
    run_extreme(batch, positive, largest, static_cast<float*>(value), index);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
