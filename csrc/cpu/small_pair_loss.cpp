#include <algorithm>
#include <cmath>
#include <numeric>
#include <type_traits>
#include <vector>

#include "small.h"
#include "small_fold.h"
#include "small_step.h"
#include "small_two_sets.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

template <typename T>
void run(const SmallBatch& batch, const SmallLoss& loss, T* terms_out, T* dx) {
  Step<T> step(batch);
  const int64_t n = batch.n, d = batch.d;
  std::vector<T> levels, weights;
  const PairLayout g = step.layout();
  const auto engine =
      make_pair_engine(loss.spec, loss.params, batch.sign, loss.limits, g, batch.fixed_level, std::is_same_v<T, double>);
  const T* x = step.row(0);
  const bool known =
      !std::isnan(batch.fixed_level) || set_levels(*engine, batch.distance, loss, x, n, d, longest(x, n, d), levels);
  T* tile = step.products();
  fold_all<T>(batch, loss, {{*engine, levels, n}}, known, tile, n, n, n);
  reduce_all(batch, loss, g, *engine, 0, terms_out, weights);
  if (dx == nullptr) return;
  engine->set_weights(weights.data());
  const bool live = engine->coefficients(tile, n, 0, n, 0, n, n, true, true);
  T* grad = step.gradient(live);
  engine->finish_gradients(grad, nullptr);
  step.write_gradient(dx);
}

template <typename T>
SmallResult run_loss(const SmallBatch& batch, const SmallLoss& loss, const SmallOutputs& out) {
  T* terms = static_cast<T*>(out.terms);
  if (loss.y == nullptr)
    run(batch, loss, terms, static_cast<T*>(out.x));
  else
    run_two_sets(batch, loss, terms, out);
  T* end = terms + loss.terms.size();
  *static_cast<T*>(out.total) = std::accumulate(terms, end, T(0));
  return std::all_of(terms, end, [](T term) { return term == T(0); }) ? SmallResult::nothing : SmallResult::done;
}

}  // namespace

SmallResult small_pair_loss(const SmallBatch& batch, const SmallLoss& loss, const SmallOutputs& out, bool is_double) {
  return is_double ? run_loss<double>(batch, loss, out) : run_loss<float>(batch, loss, out);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
