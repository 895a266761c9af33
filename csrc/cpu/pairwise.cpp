#include "pairwise.h"

#include <algorithm>
#include <stdexcept>

#include "../engine/pair_specs.h"
#include "../runtime/parallel.h"
#include "scores.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

struct NoFold {};

int64_t blocks_of(int64_t first, int64_t last) {
  return (last - first + kBlock - 1) / kBlock;
}

// A run of columns that are negatives of one row; `mirror` says that they fold into their own rows as well.
struct Segment {
  int64_t first, last;
  bool mirror;
};

// The negatives of row i among columns j0..j1: what lies before and after its positives, cut where mirroring begins.
struct Segments {
  Segment part[4];
  int count = 0;

  Segments(int64_t start, int64_t end, int64_t j0, int64_t j1, int64_t j_mirror) {
    add(j0, std::min(j1, start), j_mirror);
    add(std::max(j0, end), j1, j_mirror);
  }

 private:
  void add(int64_t first, int64_t last, int64_t j_mirror) {
    if (first >= last) return;
    const int64_t cut = std::min(std::max(first, j_mirror), last);
    if (first < cut) part[count++] = {first, cut, false};
    if (cut < last) part[count++] = {cut, last, true};
  }
};

template <typename T, typename Spec>
class Engine final : public PairEngine {
 public:
  Engine(const Spec& spec, const PairLayout& layout, double fixed_shift)
      : spec_(spec),
        g_(layout),
        scores_(layout),
        per_row_shift_(fixed_shift != fixed_shift),
        fixed_shift_(per_row_shift_ ? T(0) : T(fixed_shift)) {
    const T* rule = static_cast<const T*>(layout.rule);
    if (rule != nullptr)
      for (int k = 0; k < 4; ++k) rule_[k] = rule + k * g_.n;
    table_.resize(g_.offset[g_.n]);
    first_.assign(g_.n, T(0));
    second_.assign(g_.n, T(0));
  }

  int terms() const override {
    if constexpr (std::is_same_v<Spec, NoFold>)
      return 0;
    else
      return Spec::kTerms;
  }

  void score_positives() override {
    over_rows([&](int64_t i) {
      T* s = table_.data() + g_.offset[i];
      for (int64_t j = g_.start[i]; j < g_.end[i]; ++j) s[j - g_.start[i]] = scores_.exact(i, j);
    });
  }

  void fold_extreme(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t j_mirror, bool largest,
                    void* value, int64_t* index) override {
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
          if (seg.mirror) mirror_extreme(s, i, seg, sign, best, index);
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

  void fold(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t j_mirror) override {
    if constexpr (!std::is_same_v<Spec, NoFold>) {
      const auto f = spec_.fold();
      const int64_t rows = i1 - i0, blocks = blocks_of(j0, j1);
      partial_.assign(2 * blocks * rows, T(0));
      over_blocks(j0, j1, [&](int64_t block, int64_t b0, int64_t b1) {
        for (int64_t i = i0; i < i1; ++i) {
          T* s = static_cast<T*>(tile) + (i - i0) * ld - j0;
          scores_.from_products(s, i, b0, b1);
          T* sums = partial_.data() + 2 * (block * rows + i - i0);
          const Segments segments(g_.start[i], g_.end[i], b0, b1, j_mirror);
          for (int p = 0; p < segments.count; ++p) fold_segment(f, s, i, segments.part[p], sums[0], sums[1]);
        }
      });
      for (int64_t block = 0; block < blocks; ++block)
        for (int64_t r = 0; r < rows; ++r) {
          first_[i0 + r] += partial_[2 * (block * rows + r)];
          second_[i0 + r] += partial_[2 * (block * rows + r) + 1];
        }
    }
  }

  void finish(void* out, bool exists[2]) override {
    if constexpr (!std::is_same_v<Spec, NoFold>) {
      T* rows = static_cast<T*>(out);
      slope_table_.assign(table_.size(), T(0));
      alpha_.assign(g_.n, T(0));
      over_rows([&](int64_t i) {
        Positives<T> pos = positives(i);
        pos.q = slope_table_.data() + g_.offset[i];
        Row<T> row;
        spec_.finish(pos, {first_[i], second_[i], shift(i)}, row);
        for (int t = 0; t < Spec::kTerms; ++t) {
          rows[(2 * t) * g_.n + i] = row.value[t];
          rows[(2 * t + 1) * g_.n + i] = row.count[t];
        }
        alpha_[i] = row.alpha;
      });
      exists[0] = exists[1] = false;
      for (int64_t i = 0; i < g_.n; ++i) {
        exists[1] |= first_[i] != T(0);
        const Positives<T> pos = positives(i);
        for (int64_t k = 0; k < pos.count && !exists[0]; ++k) exists[0] = pos.keeps(k);
      }
    }
  }

  void set_shift(const void* shift) override { row_shift_ = static_cast<const T*>(shift); }

  void set_weights(const void* weights) override {
    if constexpr (!std::is_same_v<Spec, NoFold>) {
      const T* w = static_cast<const T*>(weights);
      pos_weight_ = w + Spec::kPosTerm * g_.n;
      const T* neg = w + Spec::kNegTerm * g_.n;
      weighted_.resize(g_.n);
      for (int64_t i = 0; i < g_.n; ++i) weighted_[i] = neg[i] == T(0) ? T(0) : alpha_[i] * neg[i];
      row_sum_.assign(g_.n, T(0));
      col_sum_.assign(g_.itself ? 0 : g_.m, T(0));
    }
  }

  bool coefficients(void* tile, int64_t ld, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t j_mirror, bool scored,
                    bool both_roles) override {
    if constexpr (std::is_same_v<Spec, NoFold>) {
      return false;
    } else {
      const auto f = spec_.fold();
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
            coefficient_segment(f, s, i, seg, both_roles, h + (seg.first - b0));
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
    if constexpr (!std::is_same_v<Spec, NoFold>) {
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
    const T low = rule_[0] != nullptr ? rule_[0][i] : -infinity, high = rule_[1] != nullptr ? rule_[1][i] : infinity;
    return {table_.data() + g_.offset[i], nullptr, g_.end[i] - g_.start[i], self, low, high};
  }

  T shift(int64_t i) const { return per_row_shift_ ? row_shift_[i] : fixed_shift_; }

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

  bool in_rule(int64_t row, T s) const { return rule_[2] == nullptr || (!(s < rule_[2][row]) && !(s > rule_[3][row])); }

  void row_extreme(const T* s, int64_t i, const Segment& seg, T sign, T& top, int64_t& where) const {
    T local = minus_infinity<T>();
    const bool filter = rule_[2] != nullptr;
    const T low = filter ? rule_[2][i] : T(0), high = filter ? rule_[3][i] : T(0);
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
      if (in_rule(i, s[j]) && !(sign * s[j] < local)) {
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
      if (!in_rule(j, s[j])) continue;
      best[j] = s[j];
      index[j] = i;
    }
  }

  // ---- folding the negatives
  // ---------------------------------------------------------------------------------------------------

  template <typename Fold>
  void fold_segment(const Fold& f, const T* s, int64_t i, const Segment& seg, T& first, T& second) {
    const bool filter = rule_[2] != nullptr;
    if (seg.mirror)
      filter ? fold_run<true, true>(f, s, i, seg, first, second) : fold_run<true, false>(f, s, i, seg, first, second);
    else
      filter ? fold_run<false, true>(f, s, i, seg, first, second) : fold_run<false, false>(f, s, i, seg, first, second);
  }

  template <bool kMirror, bool kFilter>
  void fold_run(const HingeFold<T>& f, const T* s, int64_t i, const Segment& seg, T& first, T& second) {
    T sum = 0, count = 0;
    T *sums = first_.data(), *counts = second_.data();
    const T *lows = rule_[2], *highs = rule_[3];
    const T low = kFilter ? lows[i] : T(0), high = kFilter ? highs[i] : T(0);
#pragma omp simd reduction(+ : sum, count)
    for (int64_t j = seg.first; j < seg.last; ++j) {
      const T loss = f.loss(s[j]);
      const bool inside = f.kept(loss);
      const bool keep = inside & (!kFilter || (!(s[j] < low) & !(s[j] > high)));
      sum += keep ? loss : T(0);
      count += keep ? T(1) : T(0);
      if constexpr (kMirror) {
        const bool there = inside & (!kFilter || (!(s[j] < lows[j]) & !(s[j] > highs[j])));
        sums[j] += there ? loss : T(0);
        counts[j] += there ? T(1) : T(0);
      }
    }
    first += sum;
    second += count;
  }

  template <bool kMirror, bool kFilter, typename Logit>
  void fold_run(const Logit& f, const T* s, int64_t i, const Segment& seg, T& first, T&) {
    if (per_row_shift_)
      sum_run<kMirror, kFilter, true>(f, s, i, seg, first);
    else
      sum_run<kMirror, kFilter, false>(f, s, i, seg, first);
  }

  template <bool kMirror, bool kFilter, bool kRowShift, typename Logit>
  void sum_run(const Logit f, const T* s, int64_t i, const Segment& seg, T& first) {
    T sum = 0;
    T* sums = first_.data();
    const T *lows = rule_[2], *highs = rule_[3], *shifts = row_shift_;
    const T low = kFilter ? lows[i] : T(0), high = kFilter ? highs[i] : T(0);
    const T own = kRowShift ? shifts[i] : fixed_shift_;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = seg.first; j < seg.last; ++j) {
      const T logit = f.logit(s[j]);
      const T e = exp_of(logit - own);
      const bool keep = !kFilter || (!(s[j] < low) & !(s[j] > high));
      sum += keep ? e : T(0);
      if constexpr (kMirror) {
        const T there = kRowShift ? exp_of(logit - shifts[j]) : e;
        const bool kept = !kFilter || (!(s[j] < lows[j]) & !(s[j] > highs[j]));
        sums[j] += kept ? there : T(0);
      }
    }
    first += sum;
  }

  // ---- coefficients
  // ------------------------------------------------------------------------------------------------------------

  template <typename Fold>
  void coefficient_segment(const Fold& f, const T* s, int64_t i, const Segment& seg, bool both, T* h) const {
    const bool filter = rule_[2] != nullptr;
    if (both)
      filter ? coefficient_run<true, true>(f, s, i, seg, h) : coefficient_run<true, false>(f, s, i, seg, h);
    else
      filter ? coefficient_run<false, true>(f, s, i, seg, h) : coefficient_run<false, false>(f, s, i, seg, h);
  }

  template <bool kBoth, bool kFilter>
  void coefficient_run(const HingeFold<T>& f, const T* s, int64_t i, const Segment& seg, T* h) const {
    const T *lows = rule_[2], *highs = rule_[3], *weights = weighted_.data();
    const T low = kFilter ? lows[i] : T(0), high = kFilter ? highs[i] : T(0), own = weights[i];
#pragma omp simd
    for (int64_t j = seg.first; j < seg.last; ++j) {
      const T loss = f.loss(s[j]);
      const bool active = f.kept(loss) & !(loss <= T(0));
      T c = (active & (!kFilter || (!(s[j] < low) & !(s[j] > high)))) ? own : T(0);
      if constexpr (kBoth) c += (active & (!kFilter || (!(s[j] < lows[j]) & !(s[j] > highs[j])))) ? weights[j] : T(0);
      h[j - seg.first] = f.a * c;
    }
  }

  template <bool kBoth, bool kFilter, typename Logit>
  void coefficient_run(const Logit& f, const T* s, int64_t i, const Segment& seg, T* h) const {
    if (per_row_shift_)
      slope_run<kBoth, kFilter, true>(f, s, i, seg, h);
    else
      slope_run<kBoth, kFilter, false>(f, s, i, seg, h);
  }

  template <bool kBoth, bool kFilter, bool kRowShift, typename Logit>
  void slope_run(const Logit f, const T* s, int64_t i, const Segment& seg, T* h) const {
    const T *lows = rule_[2], *highs = rule_[3], *weights = weighted_.data(), *shifts = row_shift_;
    const T low = kFilter ? lows[i] : T(0), high = kFilter ? highs[i] : T(0), own = weights[i];
    const T own_shift = kRowShift ? shifts[i] : fixed_shift_;
#pragma omp simd
    for (int64_t j = seg.first; j < seg.last; ++j) {
      const T logit = f.logit(s[j]);
      const T e = exp_of(logit - own_shift);
      const bool keep = !kFilter || (!(s[j] < low) & !(s[j] > high));
      T c = keep ? own * e : T(0);
      if constexpr (kBoth) {
        const T there = kRowShift ? exp_of(logit - shifts[j]) : e;
        const bool kept = !kFilter || (!(s[j] < lows[j]) & !(s[j] > highs[j]));
        c += kept ? weights[j] * there : T(0);
      }
      h[j - seg.first] = f.slope(s[j]) * c;
    }
  }

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
    return over_difference(g_.distance, q * pos_weight_[i], table_[g_.offset[i] + k]);
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
  bool per_row_shift_;
  T fixed_shift_;
  const T* rule_[4] = {nullptr, nullptr, nullptr, nullptr};
  const T* row_shift_ = nullptr;
  const T* pos_weight_ = nullptr;
  std::vector<T> table_, slope_table_;          // positives' scores, and d(row value)/d(score)
  std::vector<T> first_, second_;               // the negatives' state of each row
  std::vector<T> alpha_, weighted_;             // its factor in the coefficients, without and with the row's weight
  std::vector<T> row_sum_, col_sum_, partial_;  // sums of a distance's coefficients
};

template <typename T>
std::unique_ptr<PairEngine> make(const std::string& spec, const std::vector<double>& params, double sign,
                                 const std::vector<Limits>& limits, const PairLayout& layout, double shift) {
  const auto build = [&](auto s) { return std::make_unique<Engine<T, decltype(s)>>(s, layout, shift); };
  if (spec.empty()) return build(NoFold{});
  if (spec == "supcon") return build(SupCon<T>(params, sign, limits));
  if (spec == "ntxent") return build(NTXent<T>(params, sign, limits));
  if (spec == "multi_similarity") return build(MultiSimilarity<T>(params, sign, limits));
  if (spec == "circle") return build(Circle<T>(params, sign, limits));
  if (spec == "contrastive") return build(Contrastive<T>(params, sign, limits));
  throw std::invalid_argument("spec must be a compiled loss, got '" + spec + "'; use the chunked backend");
}

}  // namespace

std::unique_ptr<PairEngine> make_pair_engine(const std::string& spec, const std::vector<double>& params, double sign,
                                             const std::vector<Limits>& limits, const PairLayout& layout, double fixed_shift,
                                             bool is_double) {
  return is_double ? make<double>(spec, params, sign, limits, layout, fixed_shift)
                   : make<float>(spec, params, sign, limits, layout, fixed_shift);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
