// The pairwise engine of one spec (engine/pair_specs.h): tiles are folded into its rows' state, rows are finished, and tiles
// and positives are turned into gradients.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "../engine/pair_folds.h"
#include "../engine/pair_row.h"
#include "column_blocks.h"
#include "pair_extremes.h"
#include "pair_gradients.h"
#include "pair_means.h"
#include "pair_neighbours.h"
#include "pair_positives.h"
#include "pair_products.h"
#include "pair_runs.h"
#include "pair_search.h"
#include "pairwise.h"
#include "row_tasks.h"
#include "scores.h"
#include "tile_sums.h"

namespace pml_fast {
namespace PML_FAST_ISA {
// Of the one source that includes this: what is seen to have no other caller is inlined into its loops.
namespace {

// In the place of a spec: an engine without a loss, which only finds extremes.
struct NoFold {};

template <typename Spec>
constexpr bool kFolds = !std::is_same_v<Spec, NoFold>;

template <typename T, typename Spec>
class SpecPairEngine final : public PairEngine {
 public:
  SpecPairEngine(const Spec& spec, const PairLayout& layout, double fixed_level)
      : spec_(spec), g_(layout), scores_(layout), positives_(layout), neighbours_(layout), gradients_(g_, scores_) {
    take_rule(static_cast<const T*>(layout.rule));
    negatives_.level = fixed_level != fixed_level ? T(0) : T(fixed_level);
    clear_state();
  }

  int terms() const override {
    if constexpr (kFolds<Spec>)
      return Spec::kTerms;
    else
      return 0;
  }

  int sweeps() const override {
    if constexpr (kFolds<Spec>)
      return Spec::kMeans ? 2 : 1;
    else
      return 1;
  }

  void mirror_into(PairEngine& columns) override { mirror_ = &dynamic_cast<SpecPairEngine&>(columns); }

  void search(double epsilon, double sign, bool counts_copies) override {
    search_.begin(g_.n, static_cast<T>(epsilon), static_cast<T>(sign), counts_copies);
    take_rule(search_.rule());
  }

  void score_positives() override {
    over_rows([&](int64_t i) {
      positives_.score(i, scores_);
      if (search_.active()) search_.bound_negatives(i, positives_.row(i));
    });
  }

  void fold_extreme(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t j_mirror, bool largest,
                    void* value, int64_t* index, void* mirror_value, int64_t* mirror_index) override {
    const PairExtremes<T> extremes(negatives_, mirror_->negatives_, largest);
    const Tile at{static_cast<T*>(tile), ld, i0, i1, j0, j1, j_mirror};
    extremes.tile(at, g_, scores_, {static_cast<T*>(value), index}, {static_cast<T*>(mirror_value), mirror_index});
  }

  void positive_extreme(bool largest, void* value, int64_t* index) override {
    T* best = static_cast<T*>(value);
    const PairExtremes<T> extremes(negatives_, mirror_->negatives_, largest);
    over_rows([&](int64_t i) { extremes.take_positives(positives_.row(i), g_.start[i], best[i], index[i]); });
  }

  void fold(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t j_mirror, bool scored) override {
    if constexpr (kFolds<Spec>) {
      const Tile at{static_cast<T*>(tile), ld, i0, i1, j0, j1, j_mirror};
      if constexpr (Spec::kMeans)
        if (!means_.known()) return fold_tile(ScoreFold<T>{}, at, scored);
      fold_tile(spec_.fold(), at, scored);
    }
  }

  void end_sweep() override {
    if (search_.active()) over_rows([&](int64_t i) { search_.bound_positives(i); });
    if constexpr (kFolds<Spec>) {
      if constexpr (Spec::kMeans) {
        if (means_.known()) return;
        means_.set(positives_, state_[0], state_[1], [&](int side, T mean) { spec_.take_mean(side, mean); });
        clear_state();
      }
    }
  }

  void finish(void* out, bool exists[2]) override {
    if constexpr (kFolds<Spec>) {
      T* rows = static_cast<T*>(out);
      positives_.clear_slopes();
      for (int b = 0; b < Spec::Fold::kBack; ++b) back_[b].assign(g_.n, T(0));
      if constexpr (Spec::kNeighbours) {
        neighbours_.clear();
        over_rows([&](int64_t i) { neighbours_.set(i, state(i).log_sum()); });
      }
      if constexpr (Spec::kMeans) means_.resize(g_.n);
      over_rows([&](int64_t i) { finish_one(i, rows); });
      exists[0] = positives_.any();
      exists[1] = std::any_of(state_[0].begin(), state_[0].end(), [](T sum) { return sum != T(0); });
    }
  }

  void set_levels(const void* levels) override { negatives_.levels = static_cast<const T*>(levels); }
  void set_level(double level) override { negatives_.level = static_cast<T>(level); }

  void set_weights(const void* weights) override {
    if constexpr (kFolds<Spec>) {
      const T* w = static_cast<const T*>(weights);
      const T *pos = w + Spec::kPosTerm * g_.n, *neg = w + Spec::kNegTerm * g_.n;
      if constexpr (Spec::kNeighbours)
        weigh_neighbours(pos);
      else
        for (int b = 0; b < Spec::Fold::kBack; ++b)
          for (int64_t i = 0; i < g_.n; ++i) back_[b][i] = weighed(neg[i], back_[b][i]);
      over_rows([&](int64_t i) { positives_.weigh(i, pos[i]); });
      if constexpr (Spec::kMeans) weigh_means(pos, neg);
      if (!collected_) gradients_.clear();
    }
  }

  void begin_collecting() override {
    if constexpr (kFolds<Spec>) {
      if (Spec::kMeans || Spec::Fold::kBack != 1) throw std::logic_error("the slopes of this loss have no common weight");
      back_[0].assign(g_.n, T(1));
      gradients_.clear();
      collected_ = true;
    }
  }

  bool coefficients(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t j_mirror, bool scored,
                    bool both_roles) override {
    return slope_tile<false>({static_cast<T*>(tile), ld, i0, i1, j0, j1, j_mirror}, scored, both_roles);
  }

  bool collect(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t j_mirror,
               bool both_roles) override {
    return slope_tile<true>({static_cast<T*>(tile), ld, i0, i1, j0, j1, j_mirror}, false, both_roles);
  }

  void finish_gradients(void* dx_out, void* dy_out) override {
    if constexpr (kFolds<Spec>) {
      T *dx = static_cast<T*>(dx_out), *dy = static_cast<T*>(dy_out);
      const T* weights = collected_ ? back_[0].data() : nullptr;
      if (dx != nullptr)
        over_rows([&](int64_t i) {
          gradients_.finish_row(i, positives_, weights == nullptr ? nullptr : weights + i, dx + i * g_.d);
        });
      // Columns have collected from all rows: these weigh alike.
      if (dy != nullptr) over(g_.m, [&](int64_t j) { gradients_.finish_column(j, positives_, weights, dy + j * g_.d); });
    }
  }

 private:
  using Tile = PairTile<T>;

  // ---- shapes of work

  template <typename F>
  void over(int64_t count, F&& body) const {
    for_rows(0, count, 64, count * g_.d < 65536 ? 1 : g_.threads, body);
  }

  template <typename F>
  void over_rows(F&& body) const {
    over(g_.n, body);
  }

  // ---- rows

  void take_rule(const T* rule) {
    if (rule == nullptr) return;
    positives_.take_rule(rule);
    negatives_.low = rule + 2 * g_.n;
    negatives_.high = rule + 3 * g_.n;
  }

  NegativeState<T> state(int64_t i) const { return {{state_[0][i], state_[1][i], state_[2][i]}, negatives_.level_of(i)}; }

  void clear_state() {
    for (auto& sums : state_) sums.assign(g_.n, T(0));
  }

  // ---- tiles: a task owns a block of columns and goes through the rows

  // What it leaves of a row: sums of the negatives, the factor of the row itself in its gradient, and the hardest negative.
  static constexpr int64_t kOwnFactor = 3, kHardest = 4, kSums = 5;

  template <typename Fold>
  void fold_tile(const Fold& f, const Tile& t, bool scored) {
    const PairRuns<T> runs(negatives_, mirror_->negatives_);
    sums_.open(t.i0, t.i1, t.j0, t.j1);
    over_blocks(t.j0, t.j1, g_.threads, [&](int64_t block, int64_t b0, int64_t b1) {
      for (int64_t i = t.i0; i < t.i1; ++i) {
        if (!scored) scores_.from_products(t.row(i), i, b0, b1);
        fold_row(f, runs, t, i, b0, b1, sums_.of(block, i));
      }
    });
    add_to_state<Fold>();
  }

  // Scores become coefficients; kFold: once they have been folded, while a row's share of the block is in cache.
  template <bool kFold>
  bool slope_tile(const Tile& t, bool scored, bool both_roles) {
    if constexpr (!kFolds<Spec>) {
      return false;
    } else {
      const auto f = spec_.fold();
      const PairRuns<T> runs(negatives_, mirror_->negatives_);
      sums_.open(t.i0, t.i1, t.j0, t.j1);
      std::vector<char> live(blocks_of(t.j0, t.j1), 0);
      over_blocks(t.j0, t.j1, g_.threads, [&](int64_t block, int64_t b0, int64_t b1) {
        T largest = 0;
        for (int64_t i = t.i0; i < t.i1; ++i) {
          T* sums = sums_.of(block, i);
          if (!scored) scores_.from_products(t.row(i), i, b0, b1);
          if constexpr (kFold) fold_row(f, runs, t, i, b0, b1, sums);
          sums[kOwnFactor] = slope_row(f, runs, t, i, b0, b1, both_roles, largest);
        }
        // Written so that a NaN is something.
        live[block] = !(largest == T(0));
      });
      if constexpr (kFold) add_to_state<decltype(spec_.fold())>();
      if (g_.distance != Distance::kDot)
        sums_.each([&](int64_t i, const T* sums) { gradients_.add_row_sum(i, sums[kOwnFactor]); });
      return std::any_of(live.begin(), live.end(), [](char c) { return c != 0; });
    }
  }

  template <typename Fold>
  void fold_row(const Fold& f, const PairRuns<T>& runs, const Tile& t, int64_t i, int64_t b0, int64_t b1, T* sums) {
    const Segments segments(g_.start[i], g_.end[i], b0, b1, t.j_mirror);
    for (int p = 0; p < segments.count; ++p) runs.fold(f, t.row(i), i, segments.part[p], sums, mirror_->state_);
    if (!search_.active()) return;
    sums[kHardest] = minus_infinity<T>();
    for (int p = 0; p < segments.count; ++p)
      search_.see(t.row(i), segments.part[p], sums[kHardest], mirror_->search_.hardest());
  }

  template <typename Fold>
  T slope_row(const Fold& f, const PairRuns<T>& runs, const Tile& t, int64_t i, int64_t b0, int64_t b1, bool both_roles,
              T& largest) {
    T h[kBlock];
    T* s = t.row(i);
    const Segments segments(g_.start[i], g_.end[i], b0, b1, b1);
    for (int p = 0; p < segments.count; ++p) {
      const Segment& seg = segments.part[p];
      runs.slopes(f, s, i, seg, both_roles, back_, mirror_->back_, h + (seg.first - b0));
    }
    const int64_t p0 = std::clamp(g_.start[i], b0, b1), p1 = std::clamp(g_.end[i], p0, b1);
    for (int64_t j = p0; j < p1; ++j) h[j - b0] = T(0);
    const int64_t from = g_.itself ? std::clamp(t.j_mirror, b0, b1) : b0;
    return to_products(g_.distance, s, h, b0, b1, gradients_.column_sums(), from, largest);
  }

  template <typename Fold>
  void add_to_state() {
    sums_.each([&](int64_t i, const T* sums) {
      for (int k = 0; k < Fold::kState; ++k) state_[k][i] += sums[k];
      if (search_.active()) search_.take(i, sums[kHardest]);
    });
  }

  void finish_one(int64_t i, T* rows) {
    Positives<T> pos = positives_.row(i);
    pos.q = positives_.slopes(i);
    if constexpr (Spec::kNeighbours) neighbours_.show(i, pos);
    Row<T> row;
    spec_.finish(pos, state(i), row);
    for (int t = 0; t < Spec::kTerms; ++t) {
      rows[(2 * t) * g_.n + i] = row.value[t];
      rows[(2 * t + 1) * g_.n + i] = row.count[t];
    }
    for (int b = 0; b < Spec::Fold::kBack; ++b) back_[b][i] = row.back[b];
    if constexpr (Spec::kMeans) means_.keep(i, row.flow);
  }

  // ---- what rows have to do with others

  void weigh_neighbours(const T* weights) {
    std::vector<T> total(g_.n);
    over_rows([&](int64_t i) { total[i] = neighbours_.weigh(i, weights, back_[0][i], negatives_.level_of(i)); });
    back_[0] = std::move(total);
  }

  void weigh_means(const T* pos, const T* neg) {
    back_[1].assign(g_.n, means_.share(1, neg));
    const T each = means_.share(0, pos);
    over_rows([&](int64_t i) {
      const Positives<T> row = positives_.row(i);
      for (int64_t k = 0; k < row.count; ++k)
        if (row.keeps(k)) positives_.slopes(i)[k] += each;
    });
  }

  Spec spec_;
  PairLayout g_;
  Scores<T> scores_;
  PairPositives<T> positives_;
  PairNeighbours<T> neighbours_;
  PairMeans<T> means_;
  PairSearch<T> search_;
  SpecPairEngine* mirror_ = this;  // whose rows the columns are, where these are anchors as well
  RowSettings<T> negatives_;
  PairGradients<T> gradients_;
  bool collected_ = false;   // the products were taken before the rows had weights
  std::vector<T> state_[3];  // the negatives' sums of each row
  std::vector<T> back_[2];   // the numbers of each row in the coefficients, later weighed
  TileSums<T, kSums> sums_;
};

}  // namespace
}  // namespace PML_FAST_ISA
}  // namespace pml_fast
