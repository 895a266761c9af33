#include "pairwise.h"

#include <algorithm>
#include <stdexcept>

#include "../engine/pair_specs.h"
#include "../runtime/parallel.h"
#include "pair_runs.h"
#include "scores.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

struct NoFold {};

int64_t blocks_of(int64_t first, int64_t last) {
  return (last - first + kBlock - 1) / kBlock;
}

// Whether an engine has a loss, or only finds extremes.
template <typename Spec>
constexpr bool kFolds = !std::is_same_v<Spec, NoFold>;

template <typename T, typename Spec>
class Engine final : public PairEngine {
 public:
  Engine(const Spec& spec, const PairLayout& layout, double fixed_level) : spec_(spec), g_(layout), scores_(layout) {
    const T* rule = static_cast<const T*>(layout.rule);
    if (rule != nullptr) {
      pos_low_ = rule;
      pos_high_ = rule + g_.n;
      negatives_.low = rule + 2 * g_.n;
      negatives_.high = rule + 3 * g_.n;
    }
    negatives_.level = fixed_level != fixed_level ? T(0) : T(fixed_level);
    table_.resize(g_.offset[g_.n]);
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

  void mirror_into(PairEngine& columns) override { mirror_ = &dynamic_cast<Engine&>(columns); }

  void score_positives() override {
    over_rows([&](int64_t i) {
      T* s = table_.data() + g_.offset[i];
      for (int64_t j = g_.start[i]; j < g_.end[i]; ++j) s[j - g_.start[i]] = scores_.exact(i, j);
    });
  }

  void fold_extreme(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t j_mirror, bool largest,
                    void* value, int64_t* index, void* mirror_value, int64_t* mirror_index) override {
    T* best = static_cast<T*>(value);
    const T sign = largest ? T(1) : T(-1);
    const int64_t rows = i1 - i0, blocks = blocks_of(j0, j1);
    std::vector<T> row_best(blocks * rows, minus_infinity<T>());
    std::vector<int64_t> row_index(blocks * rows, -1);
    over_blocks(j0, j1, [&](int64_t block, int64_t b0, int64_t b1) {
      for (int64_t i = i0; i < i1; ++i) {
        T* s = static_cast<T*>(tile) + (i - i0) * ld - j0;
        scores_.from_products(s, i, b0, b1);
        T& top = row_best[block * rows + i - i0];
        int64_t& where = row_index[block * rows + i - i0];
        const Segments segments(g_.start[i], g_.end[i], b0, b1, j_mirror);
        for (int p = 0; p < segments.count; ++p) {
          const Segment& seg = segments.part[p];
          row_extreme(s, i, seg, sign, top, where);
          if (seg.mirror) mirror_extreme(s, i, seg, sign, static_cast<T*>(mirror_value), mirror_index);
        }
      }
    });
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t r = 0; r < rows; ++r)
        if (row_index[block * rows + r] >= 0)
          take(sign, row_best[block * rows + r], row_index[block * rows + r], best[i0 + r], index[i0 + r]);
  }

  void positive_extreme(bool largest, void* value, int64_t* index) override {
    T* best = static_cast<T*>(value);
    const T sign = largest ? T(1) : T(-1);
    over_rows([&](int64_t i) {
      const Positives<T> pos = positives(i);
      for (int64_t k = 0; k < pos.count; ++k)
        if (pos.keeps(k)) take(sign, sign * pos.s[k], g_.start[i] + k, best[i], index[i]);
    });
  }

  void fold(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t j_mirror, bool scored) override {
    if constexpr (kFolds<Spec>) {
      const Tile at{static_cast<T*>(tile), ld, i0, i1, j0, j1, j_mirror};
      if constexpr (Spec::kMeans)
        if (!has_means_) return fold_tile(ScoreFold<T>{}, at, scored);
      fold_tile(spec_.fold(), at, scored);
    }
  }

  void end_sweep() override {
    if constexpr (kFolds<Spec>) {
      if constexpr (Spec::kMeans)
        if (!has_means_) take_means();
    }
  }

  void finish(void* out, bool exists[2]) override {
    if constexpr (kFolds<Spec>) {
      T* rows = static_cast<T*>(out);
      slope_table_.assign(table_.size(), T(0));
      for (int b = 0; b < Spec::Fold::kBack; ++b) back_[b].assign(g_.n, T(0));
      if constexpr (Spec::kNeighbours) {
        neighbour_table_.assign(table_.size(), T(0));
        log_sum_.resize(g_.n);
        over_rows([&](int64_t i) { log_sum_[i] = state(i).log_sum(); });
      }
      if constexpr (Spec::kMeans)
        for (auto& flow : flow_) flow.resize(g_.n);
      over_rows([&](int64_t i) { finish_one(i, rows); });
      exists[0] = exists[1] = false;
      for (int64_t i = 0; i < g_.n; ++i) {
        exists[1] |= state_[0][i] != T(0);
        const Positives<T> pos = positives(i);
        for (int64_t k = 0; k < pos.count && !exists[0]; ++k) exists[0] = pos.keeps(k);
      }
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
          for (int64_t i = 0; i < g_.n; ++i) back_[b][i] = times(neg[i], back_[b][i]);
      over_rows([&](int64_t i) {
        for (int64_t k = g_.offset[i]; k < g_.offset[i + 1]; ++k) slope_table_[k] = times(pos[i], slope_table_[k]);
      });
      if constexpr (Spec::kMeans) weigh_means(pos, neg);
      row_sum_.assign(g_.n, T(0));
      col_sum_.assign(g_.itself ? 0 : g_.m, T(0));
    }
  }

  bool coefficients(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t j_mirror, bool scored,
                    bool both_roles) override {
    if constexpr (!kFolds<Spec>) {
      return false;
    } else {
      const auto f = spec_.fold();
      const PairRuns<T> runs(negatives_, mirror_->negatives_);
      const int64_t rows = i1 - i0, blocks = blocks_of(j0, j1);
      partial_.assign(blocks * rows, T(0));
      std::vector<char> live(blocks, 0);
      over_blocks(j0, j1, [&](int64_t block, int64_t b0, int64_t b1) {
        T h[kBlock];
        T largest = 0;
        for (int64_t i = i0; i < i1; ++i) {
          T* s = static_cast<T*>(tile) + (i - i0) * ld - j0;
          if (!scored) scores_.from_products(s, i, b0, b1);
          const Segments segments(g_.start[i], g_.end[i], b0, b1, b1);
          for (int p = 0; p < segments.count; ++p) {
            const Segment& seg = segments.part[p];
            runs.slopes(f, s, i, seg, both_roles, back_, mirror_->back_, h + (seg.first - b0));
          }
          const int64_t p0 = std::clamp(g_.start[i], b0, b1), p1 = std::clamp(g_.end[i], p0, b1);
          for (int64_t j = p0; j < p1; ++j) h[j - b0] = T(0);
          const T sum = to_products(s, h, i, b0, b1, std::max(j_mirror, b0), largest);
          partial_[block * rows + i - i0] = sum;
        }
        live[block] = !(largest == T(0));
      });
      if (g_.distance != Distance::kDot)
        for (int64_t block = 0; block < blocks; ++block)
          for (int64_t r = 0; r < rows; ++r) row_sum_[i0 + r] += partial_[block * rows + r];
      return std::any_of(live.begin(), live.end(), [](char c) { return c != 0; });
    }
  }

  void finish_gradients(void* dx_out, void* dy_out) override {
    if constexpr (kFolds<Spec>) {
      T* dx = static_cast<T*>(dx_out);
      T* dy = static_cast<T*>(dy_out);
      if (dx != nullptr) over_rows([&](int64_t i) { finish_row(i, dx + i * g_.d); });
      if (dy != nullptr) over(g_.m, [&](int64_t j) { finish_column(j, dy + j * g_.d); });
    }
  }

 private:
  // ---- shapes of work
  // --------------------------------------------------------------------------------------------------------

  template <typename F>
  void over(int64_t count, F&& body) const {
    constexpr int64_t kRows = 64;
    parallel_for((count + kRows - 1) / kRows, count * g_.d < 65536 ? 1 : g_.threads, [&](int64_t task) {
      for (int64_t i = task * kRows; i < std::min(count, (task + 1) * kRows); ++i) body(i);
    });
  }

  template <typename F>
  void over_rows(F&& body) const {
    over(g_.n, body);
  }

  template <typename F>
  void over_blocks(int64_t j0, int64_t j1, F&& body) const {
    parallel_for(blocks_of(j0, j1), g_.threads, [&](int64_t block) {
      const int64_t b0 = j0 + block * kBlock;
      body(block, b0, std::min(j1, b0 + kBlock));
    });
  }

  // ---- rows
  // ------------------------------------------------------------------------------------------------------------------

  Positives<T> positives(int64_t i) const {
    const T infinity = std::numeric_limits<T>::infinity();
    const int64_t self = g_.exclude_self ? g_.own_column(i) - g_.start[i] : -1;
    const T low = pos_low_ != nullptr ? pos_low_[i] : -infinity, high = pos_high_ != nullptr ? pos_high_[i] : infinity;
    return {table_.data() + g_.offset[i], nullptr, g_.end[i] - g_.start[i], self, low, high};
  }

  NegativeState<T> state(int64_t i) const { return {{state_[0][i], state_[1][i], state_[2][i]}, negatives_.level_of(i)}; }

  void clear_state() {
    for (auto& sums : state_) sums.assign(g_.n, T(0));
  }

  void finish_one(int64_t i, T* rows) {
    Positives<T> pos = positives(i);
    pos.q = slope_table_.data() + g_.offset[i];
    if constexpr (Spec::kNeighbours) {
      // Columns are rows where they are the same samples in the same order.
      if (g_.exclude_self && g_.own == nullptr) pos.other = log_sum_.data() + g_.start[i];
      pos.back = neighbour_table_.data() + g_.offset[i];
    }
    Row<T> row;
    spec_.finish(pos, state(i), row);
    for (int t = 0; t < Spec::kTerms; ++t) {
      rows[(2 * t) * g_.n + i] = row.value[t];
      rows[(2 * t + 1) * g_.n + i] = row.count[t];
    }
    for (int b = 0; b < Spec::Fold::kBack; ++b) back_[b][i] = row.back[b];
    if constexpr (Spec::kMeans)
      for (int side = 0; side < 2; ++side) flow_[side][i] = row.flow[side];
  }

  // A row that weighs nothing must not turn an infinite derivative into NaN.
  static T times(T weight, T derivative) { return weight == T(0) ? T(0) : weight * derivative; }

  // d(loss)/d(log-sum-exp) of a row is its own, and that of the rows it is a positive of.
  void weigh_neighbours(const T* w) {
    std::vector<T> total(g_.n);
    over_rows([&](int64_t i) {
      T sum = times(w[i], back_[0][i]);
      if (g_.exclude_self && g_.own == nullptr)
        for (int64_t j = g_.start[i]; j < g_.end[i]; ++j) sum += times(w[j], neighbour_table_[g_.offset[j] + i - g_.start[j]]);
      total[i] = log_sum_[i] == minus_infinity<T>() ? T(0) : sum * std::exp(negatives_.level_of(i) - log_sum_[i]);
    });
    back_[0] = std::move(total);
  }

  void take_means() {
    double sum[2] = {0, 0};
    count_[0] = count_[1] = 0;
    for (int64_t i = 0; i < g_.n; ++i) {
      const Positives<T> pos = positives(i);
      for (int64_t k = 0; k < pos.count; ++k)
        if (pos.keeps(k)) {
          sum[0] += static_cast<double>(pos.s[k]);
          count_[0] += 1;
        }
      sum[1] += static_cast<double>(state_[0][i]);
      count_[1] += static_cast<double>(state_[1][i]);
    }
    for (int side = 0; side < 2; ++side) spec_.take_mean(side, static_cast<T>(sum[side] / std::max(count_[side], 1.0)));
    has_means_ = true;
    clear_state();
  }

  // What flows back to a mean is the same for all its pairs.
  void weigh_means(const T* pos, const T* neg) {
    double total[2] = {0, 0};
    for (int64_t i = 0; i < g_.n; ++i) {
      total[0] += static_cast<double>(times(pos[i], flow_[0][i]));
      total[1] += static_cast<double>(times(neg[i], flow_[1][i]));
    }
    const T each = static_cast<T>(total[0] / std::max(count_[0], 1.0));
    back_[1].assign(g_.n, static_cast<T>(total[1] / std::max(count_[1], 1.0)));
    over_rows([&](int64_t i) {
      const Positives<T> row = positives(i);
      for (int64_t k = 0; k < row.count; ++k)
        if (row.keeps(k)) slope_table_[g_.offset[i] + k] += each;
    });
  }

  struct Tile {
    T* at;
    int64_t ld, i0, i1, j0, j1, j_mirror;
  };

  template <typename Fold>
  void fold_tile(const Fold& f, const Tile& t, bool scored) {
    constexpr int kState = Fold::kState;
    const PairRuns<T> runs(negatives_, mirror_->negatives_);
    const int64_t rows = t.i1 - t.i0, blocks = blocks_of(t.j0, t.j1);
    partial_.assign(3 * blocks * rows, T(0));
    over_blocks(t.j0, t.j1, [&](int64_t block, int64_t b0, int64_t b1) {
      for (int64_t i = t.i0; i < t.i1; ++i) {
        T* s = t.at + (i - t.i0) * t.ld - t.j0;
        if (!scored) scores_.from_products(s, i, b0, b1);
        T* sums = partial_.data() + 3 * (block * rows + i - t.i0);
        const Segments segments(g_.start[i], g_.end[i], b0, b1, t.j_mirror);
        for (int p = 0; p < segments.count; ++p) runs.fold(f, s, i, segments.part[p], sums, mirror_->state_);
      }
    });
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t r = 0; r < rows; ++r)
        for (int k = 0; k < kState; ++k) state_[k][t.i0 + r] += partial_[3 * (block * rows + r) + k];
  }

  // ---- extremes
  // --------------------------------------------------------------------------------------------------------------

  // `best` holds sign * score; the lowest column wins a tie.
  static void take(T sign, T value, int64_t column, T& best, int64_t& index) {
    const T top = index < 0 ? minus_infinity<T>() : sign * best;
    if (index < 0 || value > top || (value == top && column < index) || value != value) {
      best = sign * value;
      index = column;
    }
  }

  void row_extreme(const T* s, int64_t i, const Segment& seg, T sign, T& top, int64_t& where) const {
    T local = minus_infinity<T>();
    const bool filter = negatives_.low != nullptr;
    const T low = filter ? negatives_.low[i] : T(0), high = filter ? negatives_.high[i] : T(0);
    int kept = 0;
#pragma omp simd reduction(max : local) reduction(+ : kept)
    for (int64_t j = seg.first; j < seg.last; ++j) {
      const bool keep = !filter || (!(s[j] < low) & !(s[j] > high));
      const T v = keep ? sign * s[j] : minus_infinity<T>();
      local = v > local ? v : local;
      kept += keep ? 1 : 0;
    }
    if (kept == 0 || (where >= 0 && !(local > top))) return;
    for (int64_t j = seg.first; j < seg.last; ++j)
      if (negatives_.keeps(i, s[j]) && !(sign * s[j] < local)) {
        top = sign * s[j];
        where = j;
        return;
      }
  }

  void mirror_extreme(const T* s, int64_t i, const Segment& seg, T sign, T* best, int64_t* index) const {
    for (int64_t j = seg.first; j < seg.last; ++j) {
      const T v = sign * s[j];
      // One comparison rules out nearly every pair; ties keep the row that came first.
      if (index[j] >= 0 && !(v > sign * best[j])) continue;
      if (!mirror_->negatives_.keeps(j, s[j])) continue;
      best[j] = s[j];
      index[j] = i;
    }
  }

  // ---- coefficients
  // ------------------------------------------------------------------------------------------------------------

  // dL/dscore becomes what multiplies the other side's row in the gradient, and the distances' own-row sums are taken.
  T to_products(T* s, const T* h, int64_t i, int64_t j0, int64_t j1, int64_t j_mirror, T& largest) {
    T top = largest;
    if (g_.distance == Distance::kDot) {
#pragma omp simd reduction(max : top)
      for (int64_t j = j0; j < j1; ++j) {
        const T size = std::abs(h[j - j0]);
        top = size <= top ? top : size;
        s[j] = h[j - j0];
      }
      largest = top;
      return T(0);
    }
    T sum = 0;
    const bool root = g_.distance == Distance::kL2;
    T out[kBlock];
#pragma omp simd reduction(+ : sum) reduction(max : top)
    for (int64_t j = j0; j < j1; ++j) {
      const T inverse = root ? (s[j] == T(0) ? T(0) : T(1) / s[j]) : T(2);
      const T v = h[j - j0] * inverse;
      const T size = std::abs(v);
      top = size <= top ? top : size;
      sum += v;
      out[j - j0] = v;
      s[j] = -v;
    }
    largest = top;
    T* sums = g_.itself ? row_sum_.data() : col_sum_.data();
    const int64_t from = g_.itself ? std::min(j_mirror, j1) : j0;
#pragma omp simd
    for (int64_t j = from; j < j1; ++j) sums[j] += out[j - j0];
    (void)i;
    return sum;
  }

  // ---- gradients of the positives
  // ----------------------------------------------------------------------------------------------

  // dL/dscore of a positive pair over what its difference (or inner product) is multiplied by.
  T positive_factor(int64_t i, int64_t k) const {
    const T q = slope_table_[g_.offset[i] + k];
    if (q == T(0)) return T(0);
    return over_difference(g_.distance, q, table_[g_.offset[i] + k]);
  }

  void finish_row(int64_t i, T* grad) const {
    const T* own = scores_.row(i);
    add_own(g_.distance, row_sum_[i], own, g_.d, grad);
    for (int64_t j = g_.start[i]; j < g_.end[i]; ++j) {
      if (j == g_.own_column(i)) continue;
      T factor = positive_factor(i, j - g_.start[i]);
      if (g_.itself) factor += positive_factor(j, i - g_.start[j]);
      add_pair(g_.distance, factor, own, scores_.column(j), g_.d, grad);
    }
  }

  void finish_column(int64_t j, T* grad) const {
    const T* own = scores_.column(j);
    add_own(g_.distance, col_sum_[j], own, g_.d, grad);
    for (int64_t i = g_.col_start[j]; i < g_.col_end[j]; ++i)
      add_pair(g_.distance, positive_factor(i, j - g_.start[i]), own, scores_.row(i), g_.d, grad);
  }

  Spec spec_;
  PairLayout g_;
  Scores<T> scores_;
  Engine* mirror_ = this;                             // whose rows the columns are, where these are anchors as well
  const T *pos_low_ = nullptr, *pos_high_ = nullptr;  // closed interval of each row's positives, or null
  RowSettings<T> negatives_;
  std::vector<T> table_, slope_table_;          // positives' scores, and d(row value)/d(score), later weighed
  std::vector<T> state_[3];                     // the negatives' sums of each row
  std::vector<T> back_[2];                      // the numbers of each row in the coefficients, later weighed
  std::vector<T> log_sum_, neighbour_table_;    // each row's log-sum-exp, and d(row value)/d(that of its positive)
  std::vector<T> flow_[2];                      // d(row value)/d(mean) of either side
  std::vector<T> row_sum_, col_sum_, partial_;  // sums of a distance's coefficients
  double count_[2] = {0, 0};
  bool has_means_ = false;
};

template <typename T>
std::unique_ptr<PairEngine> make(const std::string& spec, const std::vector<double>& params, double sign,
                                 const std::vector<Limits>& limits, const PairLayout& layout, double level) {
  const auto build = [&](auto s) { return std::make_unique<Engine<T, decltype(s)>>(s, layout, level); };
  if (spec.empty()) return build(NoFold{});
  if (spec == "supcon") return build(SupCon<T>(params, sign, limits));
  if (spec == "log_sum_exp") return build(LogSumExp<T>(params, sign, limits));
  if (spec == "ntxent") return build(NTXent<T>(params, sign, limits));
  if (spec == "multi_similarity") return build(MultiSimilarity<T>(params, sign, limits));
  if (spec == "circle") return build(Circle<T>(params, sign, limits));
  if (spec == "contrastive") return build(Contrastive<T>(params, sign, limits));
  if (spec == "margin") return build(Margin<T>(params, sign, limits));
  if (spec == "threshold_consistent") return build(ThresholdConsistent<T>(params, sign, limits));
  if (spec == "tuplet_margin") return build(TupletMargin<T>(params, sign, limits));
  if (spec == "nca") return build(NCA<T>(params, sign, limits));
  if (spec == "generalized_lifted_structure") return build(GeneralizedLiftedStructure<T>(params, sign, limits));
  if (spec == "lifted_structure") return build(LiftedStructure<T>(params, sign, limits));
  if (spec == "intra_pair_variance") return build(IntraPairVariance<T>(params, sign, limits));
  if (spec == "siglip") return build(SigLIP<T>(params, sign, limits));
  if (spec == "ranked_list") return build(RankedList<T>(params, sign, limits));
  throw std::invalid_argument("spec must be a compiled loss, got '" + spec + "'; use the chunked backend");
}

}  // namespace

std::unique_ptr<PairEngine> make_pair_engine(const std::string& spec, const std::vector<double>& params, double sign,
                                             const std::vector<Limits>& limits, const PairLayout& layout, double fixed_level,
                                             bool is_double) {
  return is_double ? make<double>(spec, params, sign, limits, layout, fixed_level)
                   : make<float>(spec, params, sign, limits, layout, fixed_level);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
