#include "small.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "../runtime/layout.h"
#include "scores.h"
#include "small_step.h"
#include "unit_rows.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

// The reduced loss of one term and every row's weight.
template <typename T>
T reduce(const SmallTerm& term, const Limits& limits, const T* value, const T* count, int64_t n, T* w) {
  T total = 0, number = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (term.element) {
      const bool in = term.fold != "threshold" || !((value[i] <= T(limits.low)) | (value[i] >= T(limits.high)));
      const bool kept = in && count[i] > T(0);
      w[i] = kept ? T(1) : T(0);
      number += w[i];
      if (kept) total += value[i];
    } else {
      w[i] = T(1);
      number += count[i];
      total += value[i];
    }
  }
  if (term.fold == "sum") return total;
  const T scale = number > T(0) ? T(1) / number : T(0);
  for (int64_t i = 0; i < n; ++i) w[i] *= scale;
  return total * scale;
}

// A level for each of the sorted rows, in the middle of the logits that the norms allow; false where these span too much.
template <typename T>
bool levels_of(const SmallBatch& batch, const SmallLoss& loss, const T* x, const T* y, int64_t m, std::vector<T>& levels) {
  const int64_t d = batch.d;
  T top = 0;
  for (int64_t j = 0; j < m; ++j) top = std::max(top, std::sqrt(dot(y + j * d, y + j * d, d)));
  levels.resize(batch.n);
  for (int64_t i = 0; i < batch.n; ++i) {
    const T norm = std::sqrt(dot(x + i * d, x + i * d, d));
    T far = batch.distance == Distance::kDot ? norm * top : norm + top;
    if (batch.distance == Distance::kL2Squared) far *= far;
    const T least = batch.distance == Distance::kDot ? -far : T(0);
    // Written so that a NaN does not fit.
    if (!(std::abs(T(loss.a)) * (far - least) <= T(loss.span))) return false;
    levels[i] = T(loss.a) * (far + least) / T(2) + T(loss.b);
  }
  return true;
}

// Rows' values and counts become the terms. `w` gets the weights of the rows' values.
template <typename T>
void reduce_all(const SmallBatch& batch, const SmallLoss& loss, PairEngine& engine, T* terms_out, std::vector<T>& w) {
  const int64_t n = batch.n, count = static_cast<int64_t>(loss.terms.size());
  std::vector<T> rows(2 * count * n);
  w.resize(count * n);
  bool exists[2];
  engine.finish(rows.data(), exists);
  const bool closed = batch.gated && !(exists[0] && exists[1]);
  for (int64_t t = 0; t < count; ++t) {
    T *own = w.data() + t * n, *value = rows.data() + 2 * t * n;
    terms_out[t] = reduce(loss.terms[t], loss.limits[t], value, value + n, n, own);
    if (closed) {
      terms_out[t] = T(0);
      std::fill(own, own + n, T(0));
    }
  }
}

template <typename T>
void fold_all(PairEngine& engine, T* tile, int64_t n, int64_t m) {
  engine.score_positives();
  for (int sweep = 0; sweep < engine.sweeps(); ++sweep) {
    engine.fold(tile, m, 0, n, 0, m, m, sweep > 0);
    engine.end_sweep();
  }
}

template <typename T>
bool run(const SmallBatch& batch, const SmallLoss& loss, T* terms_out, T* dx) {
  Step<T> step(batch);
  const int64_t n = batch.n;
  std::vector<T> levels, weights;
  if (std::isnan(batch.fixed_level) && !levels_of(batch, loss, step.row(0), step.row(0), n, levels)) return false;
  const auto engine = make_pair_engine(loss.spec, loss.params, batch.sign, loss.limits, step.layout(), batch.fixed_level,
                                       std::is_same_v<T, double>);
  if (!levels.empty()) engine->set_levels(levels.data());
  T* tile = step.products();
  fold_all(*engine, tile, n, n);
  reduce_all(batch, loss, *engine, terms_out, weights);
  if (dx == nullptr) return true;
  engine->set_weights(weights.data());
  const bool live = engine->coefficients(tile, n, 0, n, 0, n, n, true, true);
  T* grad = step.gradient(live);
  engine->finish_gradients(grad, nullptr);
  step.write_gradient(dx);
  return true;
}

template <typename T>
bool run_two_sets(const SmallBatch& batch, const SmallLoss& loss, T* terms_out, T* dx, T* dy) {
  const int64_t n = batch.n, m = loss.m, d = batch.d;
  const int threads = n * m * d < (1 << 20) ? 1 : batch.threads;
  SortedSet<T> x(batch.x, batch.labels, n, d, batch.normalize), y(loss.y, loss.y_labels, m, d, batch.normalize);
  std::vector<int64_t> start(n), end(n), col_start(m), col_end(m), offset(n + 1, 0);
  class_runs(batch.labels, x.order.data(), n, loss.y_labels, y.order.data(), m, start.data(), end.data());
  class_runs(loss.y_labels, y.order.data(), m, batch.labels, x.order.data(), n, col_start.data(), col_end.data());
  for (int64_t i = 0; i < n; ++i) offset[i + 1] = offset[i] + end[i] - start[i];
  std::vector<T> rule(batch.rule == nullptr ? 0 : 4 * n), levels, weights;
  for (size_t k = 0; k < rule.size(); ++k) {
    const int64_t side = static_cast<int64_t>(k) / n, i = static_cast<int64_t>(k) % n;
    rule[k] = static_cast<const T*>(batch.rule)[side * n + x.order[i]];
  }
  if (std::isnan(batch.fixed_level) && !levels_of(batch, loss, x.rows.data(), y.rows.data(), m, levels)) return false;
  PairLayout g{};
  g.x = x.rows.data(), g.y = y.rows.data();
  g.start = start.data(), g.end = end.data(), g.col_start = col_start.data(), g.col_end = col_end.data();
  g.offset = offset.data();
  g.rule = batch.rule == nullptr ? nullptr : rule.data();
  g.n = n, g.m = m, g.d = d;
  g.distance = batch.distance;
  g.threads = threads;
  const auto engine =
      make_pair_engine(loss.spec, loss.params, batch.sign, loss.limits, g, batch.fixed_level, std::is_same_v<T, double>);
  if (!levels.empty()) engine->set_levels(levels.data());
  const std::unique_ptr<T[]> tile(new T[n * m]);
  multiply({x.rows.data(), d, 1}, n, Panels<T>({y.rows.data(), 1, d}, d, m, threads), tile.get(), m, threads);
  fold_all(*engine, tile.get(), n, m);
  reduce_all(batch, loss, *engine, terms_out, weights);
  if (dx == nullptr && dy == nullptr) return true;
  engine->set_weights(weights.data());
  const bool live = engine->coefficients(tile.get(), m, 0, n, 0, m, m, true, false);
  T* by_x = dx == nullptr ? nullptr : x.gradient({tile.get(), m, 1}, y, live, threads);
  T* by_y = dy == nullptr ? nullptr : y.gradient({tile.get(), 1, m}, x, live, threads);
  engine->finish_gradients(by_x, by_y);
  if (dx != nullptr) x.write_gradient(dx);
  if (dy != nullptr) y.write_gradient(dy);
  return true;
}

template <typename T>
bool run_loss(const SmallBatch& batch, const SmallLoss& loss, void* terms_out, void* dx, void* dy) {
  T *terms = static_cast<T*>(terms_out), *by_x = static_cast<T*>(dx), *by_y = static_cast<T*>(dy);
  return loss.y == nullptr ? run(batch, loss, terms, by_x) : run_two_sets(batch, loss, terms, by_x, by_y);
}

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
    engine->fold_extreme(step.products(), n, 0, n, 0, n, n, largest, best.data(), at.data());
  }
  for (int64_t i = 0; i < n; ++i) {
    value[step.place(i)] = best[i];
    index[step.place(i)] = at[i] < 0 ? -1 : step.place(at[i]);
  }
}

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
    // Then nothing was compared: 0 times a row that is not finite is no gradient.
    if (std::all_of(grad, grad + p_.count, [](T g) { return g == T(0); })) {
      std::fill_n(dx, p_.n * p_.d, T(0));
      return;
    }
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

}  // namespace

bool small_pair_scores(const SmallPairs& pairs, void* scores, bool is_double) {
  return is_double ? score_pairs(pairs, static_cast<double*>(scores)) : score_pairs(pairs, static_cast<float*>(scores));
}

void small_pair_gradients(const SmallPairs& pairs, const void* grad, void* dx, bool is_double) {
  if (is_double)
    ListedRows<double>(pairs).gradients(static_cast<const double*>(grad), static_cast<double*>(dx));
  else
    ListedRows<float>(pairs).gradients(static_cast<const float*>(grad), static_cast<float*>(dx));
}

void small_triplet_loss(const SmallBatch& batch, const TripletOptions& options, const std::string& fold, void* loss, void* dx,
                        bool is_double) {
  if (is_double)
    run_triplets(batch, options, fold, static_cast<double*>(loss), static_cast<double*>(dx));
  else
    run_triplets(batch, options, fold, static_cast<float*>(loss), static_cast<float*>(dx));
}

void small_extreme(const SmallBatch& batch, bool positive, bool largest, void* value, int64_t* index, bool is_double) {
  if (is_double)
    run_extreme(batch, positive, largest, static_cast<double*>(value), index);
  else
    run_extreme(batch, positive, largest, static_cast<float*>(value), index);
}

bool small_pair_loss(const SmallBatch& batch, const SmallLoss& loss, void* terms_out, void* dx, void* dy, bool is_double) {
  return is_double ? run_loss<double>(batch, loss, terms_out, dx, dy) : run_loss<float>(batch, loss, terms_out, dx, dy);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
