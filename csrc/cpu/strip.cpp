#include "strip.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "../engine/row_specs.h"
#include "../runtime/parallel.h"
#include "scores.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

template <typename T, typename Spec>
class Strip final : public StripEngine {
 public:
  Strip(const Spec& spec, const Limits& limits, const PairLayout& layout)
      : spec_(spec), limits_(limits), g_(layout), scores_(layout) {}

  bool run(void* products, int64_t ld, int64_t i0, int64_t i1, const StripRows& rows) override {
    std::atomic<bool> live{false};
    const int64_t tasks = (i1 - i0 + kRows - 1) / kRows;
    const bool small = (i1 - i0) * g_.m < (1 << 14);
    parallel_for(tasks, small ? 1 : g_.threads, [&](int64_t task) {
      Spec spec = spec_;
      bool any = false;
      for (int64_t i = i0 + task * kRows; i < std::min(i1, i0 + (task + 1) * kRows); ++i)
        any |= one(spec, static_cast<T*>(products) + (i - i0) * ld, i, rows);
      if (any) live = true;
    });
    return live;
  }

  bool common_factor(const StripRows& rows, double& factor) const override {
    const T *w = static_cast<const T*>(rows.w), *there = static_cast<const T*>(rows.there),
            *kept = static_cast<const T*>(rows.kept);
    double total = 0, count = 0;
    for (int64_t i = 0; i < g_.n; ++i) {
      total += there[i] > T(0) ? w[i] : T(0);
      count += kept[i];
    }
    factor = count > 0 ? total / count : 0.0;
    // Written so that a NaN is a difference.
    for (int64_t i = 0; i < g_.n; ++i)
      if (there[i] > T(0) && !(std::abs(w[i] - factor * kept[i]) <= 1e-6 * std::abs(factor))) return false;
    return true;
  }

 private:
  // Rows a task owns: they share the buffers of a spec.
  static constexpr int64_t kRows = 8;

  bool one(Spec& spec, T* s, int64_t i, const StripRows& rows) const {
    for (int64_t j = 0; j < g_.m; j += kBlock) scores_.from_products(s, i, j, std::min(g_.m, j + kBlock));
    const bool lengths = rows.gradients && g_.distance == Distance::kL2;
    std::vector<T> score;
    if (lengths) score.assign(s, s + g_.m);
    T loss = 0;
    const bool there = spec.row({s, g_.m, g_.start[i], g_.end[i], g_.own_column(i)}, rows.gradients, loss);
    const bool kept = there && !((loss <= T(limits_.low)) | (loss >= T(limits_.high)));
    static_cast<T*>(rows.value)[i] = there ? loss : T(0);
    static_cast<T*>(rows.there)[i] = there ? T(1) : T(0);
    static_cast<T*>(rows.kept)[i] = kept ? T(1) : T(0);
    if (!rows.gradients) return false;
    const T w = rows.w == nullptr ? (kept ? T(1) : T(0)) : there ? static_cast<const T*>(rows.w)[i] : T(0);
    T* own = static_cast<T*>(rows.own) + i;
    *own = T(0);
    if (w == T(0)) {
      std::fill(s, s + g_.m, T(0));
      return false;
    }
    return weigh(s, lengths ? score.data() : nullptr, w, *own);
  }

  // dloss/dscore becomes what multiplies the other side's row in the gradient; `own` is what multiplies the row itself.
  bool weigh(T* s, const T* score, T w, T& own) const {
    T largest = 0, sum = 0;
    if (g_.distance == Distance::kDot) {
#pragma omp simd reduction(max : largest)
      for (int64_t j = 0; j < g_.m; ++j) {
        s[j] *= w;
        largest = std::abs(s[j]) > largest || s[j] != s[j] ? T(1) : largest;
      }
    } else {
#pragma omp simd reduction(+ : sum) reduction(max : largest)
      for (int64_t j = 0; j < g_.m; ++j) {
        const T c = w * s[j];
        const T factor = score == nullptr ? T(2) * c : score[j] == T(0) ? T(0) : c / score[j];
        sum += factor;
        s[j] = -factor;
        largest = std::abs(factor) > largest || factor != factor ? T(1) : largest;
      }
      own = sum;
    }
    return !(largest == T(0));
  }

  Spec spec_;
  Limits limits_;
  PairLayout g_;
  Scores<T> scores_;
};

template <typename T>
std::unique_ptr<StripEngine> make(const std::string& spec, const std::vector<double>& params, const ScoreRange& range,
                                  const Limits& limits, const PairLayout& layout) {
  if (spec == "fast_ap") return std::make_unique<Strip<T, FastAP<T>>>(FastAP<T>(params, range), limits, layout);
  if (spec == "smooth_ap") return std::make_unique<Strip<T, SmoothAP<T>>>(SmoothAP<T>(params, range), limits, layout);
  if (spec == "pnp") return std::make_unique<Strip<T, PNP<T>>>(PNP<T>(params, range), limits, layout);
  throw std::invalid_argument("spec '" + spec + "' has no compiled row");
}

}  // namespace

std::unique_ptr<StripEngine> make_strip_engine(const std::string& spec, const std::vector<double>& params, double sign,
                                               const Limits& limits, const PairLayout& layout, bool is_double) {
  const ScoreRange range{sign, layout.distance == Distance::kL2Squared ? 4.0 : 2.0};
  return is_double ? make<double>(spec, params, range, limits, layout) : make<float>(spec, params, range, limits, layout);
}

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
