#include "pairwise.h"

#include <stdexcept>

#include "../engine/pair_specs.h"
#include "pair_engine.h"

namespace pml_fast {
namespace PML_FAST_ISA {
namespace {

template <typename T>
std::unique_ptr<PairEngine> make(const std::string& spec, const std::vector<double>& params, double sign,
                                 const std::vector<Limits>& limits, const PairLayout& layout, double level) {
  const auto build = [&](auto s) { return std::make_unique<SpecPairEngine<T, decltype(s)>>(s, layout, level); };
  if (spec.empty()) return build(NoFold{});
  if (spec == "supcon") return build(SupCon<T>(params, sign, limits));
  if (spec == "log_sum_exp") return build(LogSumExp<T>(params, sign, limits));
  if (spec == "ntxent") return build(NTXent<T>(params, sign, limits));
  if (spec == "multi_similarity") return build(MultiSimilarity<T>(params, sign, limits));
  if (spec == "circle") return build(Circle<T>(params, sign, limits));
  if (spec == "contrastive") return build(PairHinge<T>(params.at(0), params.at(1), 0, sign, limits));
  if (spec == "margin") return build(PairHinge<T>(params.at(1), params.at(1), params.at(0), sign, limits));
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
