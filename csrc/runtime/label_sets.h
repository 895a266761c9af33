// Pairs of rows with several labels, by the labels they share.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace pml_fast {

// Masks [n, classes]. A set without labels has one label that no other has but those without.
struct LabelSets {
  const uint8_t* mask;
  int64_t n, classes;
};

// Pairs in the order of their rows, then of their columns, and the Jaccard similarities of their sets.
class AlikePairs {
 public:
  int64_t count() const;

  // row [count], column [count], weight [count].
  template <typename T>
  void write(int64_t* row, int64_t* column, T* weight) const;

  // The pairs of some rows that follow on those of the part before.
  struct Part {
    std::vector<int64_t> partners;  // how many each row has
    std::vector<int32_t> column;
    std::vector<double> weight;
  };
  std::vector<Part> parts;
};

struct AlikeOptions {
  double threshold;     // the least similarity of a pair that shares a label
  bool itself;          // the sets are one: no row is its own partner
  bool is_double;       // similarities are compared, and rounded, in double precision, else in single
  int64_t most_shared;  // labels shared, counted with their pairs, up to which there is a list
};

// Null where more labels are shared. What threads there are changes no result.
std::unique_ptr<AlikePairs> alike_pairs(const LabelSets& rows, const LabelSets& columns, const AlikeOptions& options,
                                        int threads);

}  // namespace pml_fast
