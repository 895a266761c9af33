#include "small.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "small_step.h"

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

// The largest Euclidean norm of rows.
template <typename T>
T longest(const T* rows, int64_t n, int64_t d) {
  T top = 0;
  for (int64_t i = 0; i < n; ++i) top = std::max(top, std::sqrt(dot(rows + i * d, rows + i * d, d)));
  return top;
}

// Gives an engine a level for each of its rows x, in the middle of the logits that the norms of x and of the columns (at most
// `top`) allow; false where these span too much. Of inner products the middle is the same for all rows.
template <typename T>
bool set_levels(PairEngine& engine, Distance distance, const SmallLoss& loss, const T* x, int64_t n, int64_t d, T top,
                std::vector<T>& levels) {
  levels.resize(n);
  for (int64_t i = 0; i < n; ++i) {
    const T norm = std::sqrt(dot(x + i * d, x + i * d, d));
    T far = distance == Distance::kDot ? norm * top : norm + top;
    if (distance == Distance::kL2Squared) far *= far;
    const T least = distance == Distance::kDot ? -far : T(0);
    // Written so that a NaN does not fit.
    if (!(std::abs(T(loss.a)) * (far - least) <= T(loss.span))) return false;
    levels[i] = T(loss.a) * (far + least) / T(2) + T(loss.b);
  }
  if (distance == Distance::kDot)
    engine.set_level(loss.b);
  else
    engine.set_levels(levels.data());
  return true;
}

// Positive and negative pairs count as often as triplets hold them: with each negative, or each positive, of their anchor. Two
// losses, and by how much each moves where all that it counts moves by 1.
template <typename T>
void reduce_over_triplets(const PairLayout& g, const T* rows, T* terms_out, T* w) {
  T number = 0;
  for (int64_t t = 0; t < 2; ++t) {
    const T *value = rows + 2 * t * g.n, *count = value + g.n;
    T* own = w + t * g.n;
    T total = 0, slope = 0;
    for (int64_t i = 0; i < g.n; ++i) {
      const int64_t same = g.end[i] - g.start[i];
      own[i] = T(t == 0 ? g.m - same : same - (g.own_column(i) >= 0 ? 1 : 0));
      // A row without triplets adds nothing, also where one of its pairs is not a number.
      if (own[i] > T(0)) total += own[i] * value[i];
      slope += own[i] * count[i];
    }
    terms_out[t] = total;
    terms_out[2 + t] = slope;
    number += slope;
  }
  const T scale = number > T(0) ? T(1) / number : T(0);
  for (int64_t t = 0; t < 4; ++t) terms_out[t] *= scale;
  for (int64_t k = 0; k < 2 * g.n; ++k) w[k] *= scale;
}

// The values and counts of an engine's n rows become its terms, of the loss those from `first` on. `w` gets the weights of the
// rows' values. Of a bidirectional loss either direction is half of it.
template <typename T>
void reduce_all(const SmallBatch& batch, const SmallLoss& loss, const PairLayout& g, PairEngine& engine, int64_t first,
                T* terms_out, std::vector<T>& w) {
  const int64_t n = g.n, count = engine.terms();
  std::vector<T> rows(2 * count * n);
  w.resize(count * n);
  bool exists[2];
  engine.finish(rows.data(), exists);
  if (loss.terms[0].fold == "over_triplets") return reduce_over_triplets(g, rows.data(), terms_out, w.data());
  const bool closed = batch.gated && !(exists[0] && exists[1]);
  for (int64_t t = 0; t < count; ++t) {
    T *own = w.data() + t * n, *value = rows.data() + 2 * t * n;
    T& total = terms_out[first + t];
    total = reduce(loss.terms[first + t], loss.limits[first + t], value, value + n, n, own);
    const T share = closed ? T(0) : loss.bidirectional ? T(0.5) : T(1);
    if (share == T(1)) continue;
    // A gate lets nothing through, not even a NaN.
    total = closed ? T(0) : share * total;
    for (int64_t i = 0; i < n; ++i) own[i] = share * own[i];
  }
}

template <typename T>
void fold_all(PairEngine& engine, T* tile, int64_t n, int64_t m, int64_t mirror) {
  engine.score_positives();
  for (int sweep = 0; sweep < engine.sweeps(); ++sweep) {
    engine.fold(tile, m, 0, n, 0, m, mirror, sweep > 0);
    engine.end_sweep();
  }
}

template <typename T>
bool run(const SmallBatch& batch, const SmallLoss& loss, T* terms_out, T* dx) {
  Step<T> step(batch);
  const int64_t n = batch.n, d = batch.d;
  std::vector<T> levels, weights;
  const PairLayout g = step.layout();
  const auto engine =
      make_pair_engine(loss.spec, loss.params, batch.sign, loss.limits, g, batch.fixed_level, std::is_same_v<T, double>);
  const T* x = step.row(0);
  if (std::isnan(batch.fixed_level) && !set_levels(*engine, batch.distance, loss, x, n, d, longest(x, n, d), levels))
    return false;
  T* tile = step.products();
  fold_all(*engine, tile, n, n, n);
  reduce_all(batch, loss, g, *engine, 0, terms_out, weights);
  if (dx == nullptr) return true;
  engine->set_weights(weights.data());
  const bool live = engine->coefficients(tile, n, 0, n, 0, n, n, true, true);
  T* grad = step.gradient(live);
  engine->finish_gradients(grad, nullptr);
  step.write_gradient(dx);
  return true;
}

// One set as anchors of another: where the positives are, and what its engine reads and leaves.
template <typename T>
struct Anchors {
  Anchors(SortedSet<T>& own, const int64_t* labels, SortedSet<T>& other, const int64_t* other_labels)
      : own(own), other(other), start(own.n), end(own.n), offset(own.n + 1, 0) {
    class_runs(labels, own.order.data(), own.n, other_labels, other.order.data(), other.n, start.data(), end.data());
    for (int64_t i = 0; i < own.n; ++i) offset[i + 1] = offset[i] + end[i] - start[i];
  }

  // Makes the engine; `columns` are the other set's anchors. False where the levels do not fit.
  bool open(const SmallBatch& batch, const SmallLoss& loss, const Anchors& columns, int threads) {
    PairLayout& g = layout;
    g.x = own.rows.data(), g.y = other.rows.data();
    g.start = start.data(), g.end = end.data(), g.offset = offset.data();
    g.col_start = columns.start.data(), g.col_end = columns.end.data();
    g.rule = rule.empty() ? nullptr : rule.data();
    g.n = own.n, g.m = other.n, g.d = own.width;
    g.distance = batch.distance;
    g.threads = threads;
    engine = make_pair_engine(loss.spec, loss.params, batch.sign, loss.limits, g, batch.fixed_level, std::is_same_v<T, double>);
    if (!std::isnan(batch.fixed_level)) return true;
    const T top = longest(other.rows.data(), other.n, other.width);
    return set_levels(*engine, batch.distance, loss, own.rows.data(), own.n, own.width, top, levels);
  }

  void take_rule(const void* given) {
    rule.resize(4 * own.n);
    for (int64_t side = 0; side < 4; ++side)
      for (int64_t i = 0; i < own.n; ++i) rule[side * own.n + i] = static_cast<const T*>(given)[side * own.n + own.order[i]];
  }

  SortedSet<T>&own, &other;
  std::vector<int64_t> start, end, offset;
  std::vector<T> rule, levels, weights;
  PairLayout layout{};
  std::unique_ptr<PairEngine> engine;
};

// The gradient of both roles of a set that is rows and columns, left in x: one product with the coefficients and their
// transpose, where two sets take two.
template <typename T>
void merged_gradient(PairEngine& engine, const T* tile, SortedSet<T>& x, SortedSet<T>& y, bool live, int threads) {
  const int64_t n = x.n, d = x.width;
  std::vector<int64_t> in_x(n), place(n);
  for (int64_t i = 0; i < n; ++i) in_x[x.order[i]] = i;
  for (int64_t j = 0; j < n; ++j) place[j] = in_x[y.order[j]];
  const std::unique_ptr<T[]> sum(new T[n * n]);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) sum[i * n + place[j]] = tile[i * n + j];
  add_transpose(sum.get(), n, threads);
  T* grad = x.gradient({sum.get(), n, 1}, x, live, threads);
  std::vector<T> columns(n * d, T(0));
  engine.finish_gradients(grad, columns.data());
  for (int64_t j = 0; j < n; ++j)
    for (int64_t k = 0; k < d; ++k) grad[place[j] * d + k] += columns[j * d + k];
}

template <typename T>
bool run_two_sets(const SmallBatch& batch, const SmallLoss& loss, T* terms_out, const SmallOutputs& out) {
  const int64_t n = batch.n, m = loss.m;
  const int threads = n * m * batch.d < (1 << 20) ? 1 : batch.threads;
  const T bias = static_cast<T>(loss.bias), one = T(1);
  SortedSet<T> x(batch.x, batch.labels, n, batch.d, batch.normalize, static_cast<T>(loss.scale), loss.biased ? &bias : nullptr);
  SortedSet<T> y(loss.y, loss.y_labels, m, batch.d, batch.normalize, one, loss.biased ? &one : nullptr);
  Anchors<T> rows(x, batch.labels, y, loss.y_labels), columns(y, loss.y_labels, x, batch.labels);
  if (batch.rule != nullptr) rows.take_rule(batch.rule);
  if (!rows.open(batch, loss, columns, threads)) return false;
  if (loss.bidirectional) {
    if (!columns.open(batch, loss, rows, threads)) return false;
    rows.engine->mirror_into(*columns.engine);
    columns.engine->score_positives();
  }
  const std::unique_ptr<T[]> tile(new T[n * m]);
  const int64_t w = x.width;
  multiply({x.rows.data(), w, 1}, n, Panels<T>({y.rows.data(), 1, w}, w, m, threads), tile.get(), m, threads);
  fold_all(*rows.engine, tile.get(), n, m, loss.bidirectional ? 0 : m);
  reduce_all(batch, loss, rows.layout, *rows.engine, 0, terms_out, rows.weights);
  if (loss.bidirectional)
    reduce_all(batch, loss, columns.layout, *columns.engine, rows.engine->terms(), terms_out, columns.weights);
  T *dx = static_cast<T*>(out.x), *dy = static_cast<T*>(out.y);
  T *by_log_scale = static_cast<T*>(out.by_log_scale), *by_bias = static_cast<T*>(out.by_bias);
  const bool need_x = dx != nullptr || by_log_scale != nullptr || by_bias != nullptr;
  if (!need_x && dy == nullptr) return true;
  rows.engine->set_weights(rows.weights.data());
  if (loss.bidirectional) columns.engine->set_weights(columns.weights.data());
  const bool live = rows.engine->coefficients(tile.get(), m, 0, n, 0, m, m, true, loss.bidirectional);
  const bool one_set = loss.y == batch.x && n == m && loss.scale == 1 && !loss.biased && !loss.bidirectional;
  if (one_set && by_log_scale == nullptr && dx != nullptr && dy != nullptr) {
    merged_gradient(*rows.engine, tile.get(), x, y, live, threads);
    x.write_gradient(dx);
    std::fill_n(dy, n * batch.d, T(0));
    return true;
  }
  T* x_grad = need_x ? x.gradient({tile.get(), m, 1}, y, live, threads) : nullptr;
  T* y_grad = dy == nullptr ? nullptr : y.gradient({tile.get(), 1, m}, x, live, threads);
  rows.engine->finish_gradients(x_grad, y_grad);
  if (loss.bidirectional) columns.engine->finish_gradients(y_grad, x_grad);
  if (by_log_scale != nullptr) *by_log_scale = x.by_log_factor();
  if (by_bias != nullptr) *by_bias = x.by_feature();
  if (dx != nullptr) x.write_gradient(dx);
  if (dy != nullptr) y.write_gradient(dy);
  return true;
}

template <typename T>
SmallResult run_loss(const SmallBatch& batch, const SmallLoss& loss, const SmallOutputs& out) {
  T* terms = static_cast<T*>(out.terms);
  const bool fits = loss.y == nullptr ? run(batch, loss, terms, static_cast<T*>(out.x)) : run_two_sets(batch, loss, terms, out);
  if (!fits) return SmallResult::refused;
  T* end = terms + loss.terms.size();
  *static_cast<T*>(out.total) = std::accumulate(terms, end, T(0));
  return std::all_of(terms, end, [](T term) { return term == T(0); }) ? SmallResult::nothing : SmallResult::done;
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
    engine->fold_extreme(step.products(), n, 0, n, 0, n, n, largest, best.data(), at.data(), best.data(), at.data());
  }
  for (int64_t i = 0; i < n; ++i) {
    value[step.place(i)] = best[i];
    index[step.place(i)] = at[i] < 0 ? -1 : step.place(at[i]);
  }
}

}  // namespace

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

SmallResult small_pair_loss(const SmallBatch& batch, const SmallLoss& loss, const SmallOutputs& out, bool is_double) {
  return is_double ? run_loss<double>(batch, loss, out) : run_loss<float>(batch, loss, out);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
