// A pair loss between two sets, in one call.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "small_fold.h"
#include "sorted_set.h"

namespace pml_fast {
namespace PML_FAST_ISA {

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

template <typename T>
void run_two_sets(const SmallBatch& batch, const SmallLoss& loss, T* terms_out, const SmallOutputs& out) {
  const int64_t n = batch.n, m = loss.m;
  const int threads = small_threads(n, m, batch.d, batch.threads);
  const T bias = static_cast<T>(loss.bias), one = T(1);
  SortedSet<T> x(batch.x, batch.labels, n, batch.d, batch.normalize, static_cast<T>(loss.scale), loss.biased ? &bias : nullptr);
  SortedSet<T> y(loss.y, loss.y_labels, m, batch.d, batch.normalize, one, loss.biased ? &one : nullptr);
  Anchors<T> rows(x, batch.labels, y, loss.y_labels), columns(y, loss.y_labels, x, batch.labels);
  if (batch.rule != nullptr) rows.take_rule(batch.rule);
  bool known = rows.open(batch, loss, columns, threads);
  if (loss.bidirectional) {
    known = columns.open(batch, loss, rows, threads) && known;
    rows.engine->mirror_into(*columns.engine);
    columns.engine->score_positives();
  }
  const std::unique_ptr<T[]> tile(new T[n * m]);
  const int64_t w = x.width;
  multiply({x.rows.data(), w, 1}, n, Panels<T>({y.rows.data(), 1, w}, w, m, threads), tile.get(), m, threads);
  AnchorSets<T> anchors{{*rows.engine, rows.levels, n}};
  if (loss.bidirectional) anchors.push_back({*columns.engine, columns.levels, m});
  fold_all(batch, loss, anchors, known, tile.get(), n, m, loss.bidirectional ? 0 : m);
  reduce_all(batch, loss, rows.layout, *rows.engine, 0, terms_out, rows.weights);
  if (loss.bidirectional)
    reduce_all(batch, loss, columns.layout, *columns.engine, rows.engine->terms(), terms_out, columns.weights);
  T *dx = static_cast<T*>(out.x), *dy = static_cast<T*>(out.y);
  T *by_log_scale = static_cast<T*>(out.by_log_scale), *by_bias = static_cast<T*>(out.by_bias);
  const bool need_x = dx != nullptr || by_log_scale != nullptr || by_bias != nullptr;
  if (!need_x && dy == nullptr) return;
  rows.engine->set_weights(rows.weights.data());
  if (loss.bidirectional) columns.engine->set_weights(columns.weights.data());
  const bool live = rows.engine->coefficients(tile.get(), m, 0, n, 0, m, m, true, loss.bidirectional);
  T* x_grad = need_x ? x.gradient({tile.get(), m, 1}, y, live, threads) : nullptr;
  T* y_grad = dy == nullptr ? nullptr : y.gradient({tile.get(), 1, m}, x, live, threads);
  rows.engine->finish_gradients(x_grad, y_grad);
  if (loss.bidirectional) columns.engine->finish_gradients(y_grad, x_grad);
  if (by_log_scale != nullptr) *by_log_scale = x.by_log_factor();
  if (by_bias != nullptr) *by_bias = x.by_feature();
  if (dx != nullptr) x.write_gradient(dx);
  if (dy != nullptr) y.write_gradient(dy);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
