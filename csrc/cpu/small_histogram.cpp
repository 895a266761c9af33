#include "small_histogram.h"

#include <type_traits>
#include <vector>

#include "../engine/histogram.h"
#include "scores.h"
#include "small_step.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

template <typename T>
bool run(const SmallBatch& batch, const HistogramOptions& options, const RunningHistogram& running, double* loss, T* dx) {
  Step<T> step(batch);
  const int64_t n = batch.n;
  const auto engine = make_histogram_engine(options, step.layout(), std::is_same_v<T, double>);
  T* tile = step.products();
  engine->fold(tile, n, 0, n, 0);
  std::vector<double> sums(options.sums()), slopes(2 * options.count);
  if (!engine->sums(sums.data())) return false;
  *loss = options.triplets
              ? dynamic_soft_margin(sums.data(), options.count, running.before, running.momentum, running.after, slopes.data())
              : histogram_overlap(sums.data(), options.count, slopes.data());
  if (dx == nullptr) return true;
  engine->set_slopes(slopes.data());
  std::vector<T> own(n), columns(n);
  const bool live = engine->coefficients(tile, n, 0, n, 0, true, own.data());
  step.symmetrise(columns.data());
  T* grad = step.gradient(live);
  for (int64_t i = 0; i < n; ++i) add_own(batch.distance, own[i] - columns[i], step.row(i), batch.d, grad + i * batch.d);
  step.write_gradient(dx);
  return true;
}

}  // namespace

bool small_histogram_loss(const SmallBatch& batch, const HistogramOptions& options, const RunningHistogram& running,
                          double* loss, void* dx, bool is_double) {
  return is_double ? run(batch, options, running, loss, static_cast<double*>(dx))
                   : run(batch, options, running, loss, static_cast<float*>(dx));
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
