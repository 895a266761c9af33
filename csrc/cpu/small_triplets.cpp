#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "small.h"
#include "small_step.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

// The sum of all triplets' losses and its gradient, scaled as the fold asks.
template <typename T>
void run_triplets(const SmallBatch& batch, const TripletOptions& options, const std::string& fold, T* loss, T* dx) {
  Step<T> step(batch);
  const int64_t n = batch.n;
  const auto engine = make_triplet_engine(options, step.layout(), std::is_same_v<T, double>);
  T* tile = step.products();
  engine->begin_strip(0, n);
  engine->prepare(tile, n, 0, n, 0);
  const bool live = engine->fold(tile, n, 0, n, 0, n, batch.gradients, nullptr);
  std::vector<double> rows(2 * n);
  engine->rows(rows.data());
  double total = 0, count = 0;
  for (int64_t i = 0; i < n; ++i) {
    // An anchor without a triplet has no loss, whatever its row holds.
    if (rows[n + i] > 0) total += rows[i];
    count += rows[n + i];
  }
  const double scale = fold == "sum" ? 1.0 : (count > 0 ? 1.0 / count : 0.0);
  *loss = static_cast<T>(total * scale);
  if (!batch.gradients) return;
  if (*loss == T(0)) return std::fill(dx, dx + n * batch.d, T(0));
  engine->finish_strip(0, n, nullptr);
  std::vector<T> columns(n);
  step.symmetrise(columns.data());
  T* grad = step.gradient(live);
  for (int64_t j = 0; j < n; ++j) add_own(batch.distance, -columns[j], step.row(j), batch.d, grad + j * batch.d);
  engine->finish_gradients(grad, nullptr);
  for (int64_t k = 0; k < n * batch.d; ++k) grad[k] *= static_cast<T>(scale);
  step.write_gradient(dx);
}

}  // namespace

void small_triplet_loss(const SmallBatch& batch, const TripletOptions& options, const std::string& fold, void* loss, void* dx,
                        bool is_double) {
  if (is_double)
    run_triplets(batch, options, fold, static_cast<double*>(loss), static_cast<double*>(dx));
  else
    run_triplets(batch, options, fold, static_cast<float*>(loss), static_cast<float*>(dx));
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
