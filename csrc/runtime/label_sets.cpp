#include "label_sets.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "parallel.h"

namespace pml_fast {
namespace {

// Lists of numbers: those of list i are at offset[i] .. offset[i + 1].
struct Lists {
  std::vector<int64_t> offset;
  std::vector<int32_t> number;

  int64_t size(int64_t i) const { return offset[i + 1] - offset[i]; }
  const int32_t* begin(int64_t i) const { return number.data() + offset[i]; }
  const int32_t* end(int64_t i) const { return number.data() + offset[i + 1]; }
};

// Rows a task owns.
constexpr int64_t kRows = 64;

template <typename F>
void for_rows(int64_t n, int64_t rows, int threads, F&& body) {
  parallel_for((n + rows - 1) / rows, threads, [&](int64_t task) { body(task, task * rows, std::min(n, (task + 1) * rows)); });
}

// Calls take(label) for what a row has of labels, most of which it has not: eight are passed over at once.
template <typename F>
void for_labels(const uint8_t* mask, int64_t classes, F&& take) {
  int64_t c = 0;
  for (; c + 8 <= classes; c += 8) {
    uint64_t word;
    std::memcpy(&word, mask + c, sizeof(word));
    if (word == 0) continue;
    for (int64_t k = c; k < c + 8; ++k)
      if (mask[k]) take(static_cast<int32_t>(k));
  }
  for (; c < classes; ++c)
    if (mask[c]) take(static_cast<int32_t>(c));
}

Lists labels_of(const LabelSets& sets, int threads) {
  Lists lists;
  lists.offset.assign(sets.n + 1, 0);
  std::vector<std::vector<int32_t>> parts((sets.n + kRows - 1) / kRows);
  for_rows(sets.n, kRows, threads, [&](int64_t task, int64_t first, int64_t last) {
    std::vector<int32_t>& own = parts[task];
    for (int64_t i = first; i < last; ++i) {
      const size_t before = own.size();
      for_labels(sets.mask + i * sets.classes, sets.classes, [&](int32_t label) { own.push_back(label); });
      if (own.size() == before) own.push_back(static_cast<int32_t>(sets.classes));
      lists.offset[i + 1] = static_cast<int64_t>(own.size() - before);
    }
  });
  std::partial_sum(lists.offset.begin(), lists.offset.end(), lists.offset.begin());
  lists.number.reserve(lists.offset.back());
  for (const auto& part : parts) lists.number.insert(lists.number.end(), part.begin(), part.end());
  return lists;
}

// The rows that have each of `labels` labels, in their order.
Lists members_of(const Lists& sets, int64_t labels) {
  Lists lists;
  lists.offset.assign(labels + 1, 0);
  for (const int32_t label : sets.number) ++lists.offset[label + 1];
  std::partial_sum(lists.offset.begin(), lists.offset.end(), lists.offset.begin());
  std::vector<int64_t> next(lists.offset.begin(), lists.offset.end() - 1);
  lists.number.resize(sets.number.size());
  const auto n = static_cast<int64_t>(sets.offset.size()) - 1;
  for (int64_t i = 0; i < n; ++i)
    for (const int32_t* label = sets.begin(i); label != sets.end(i); ++label)
      lists.number[next[*label]++] = static_cast<int32_t>(i);
  return lists;
}

// Finds the partners of one row after another; `common` counts the labels it shares with each column, and is 0 in between.
class Search {
 public:
  Search(const Lists& rows, const Lists& columns, const Lists& members, const AlikeOptions& options)
      : rows_(rows),
        columns_(columns),
        members_(members),
        o_(options),
        threshold_(rounded(options.threshold)),
        common_(columns.offset.size() - 1, 0) {}

  void add_partners(int64_t i, AlikePairs::Part& out) {
    const size_t before = out.column.size();
    met_.clear();
    for (const int32_t* label = rows_.begin(i); label != rows_.end(i); ++label)
      for (const int32_t* j = members_.begin(*label); j != members_.end(*label); ++j)
        if (common_[*j]++ == 0) met_.push_back(*j);
    std::sort(met_.begin(), met_.end());
    for (const int32_t j : met_) {
      const int32_t shared = common_[j];
      common_[j] = 0;
      if (o_.itself && j == i) continue;
      const int64_t all = rows_.size(i) + columns_.size(j) - shared;
      const double weight = rounded(static_cast<double>(shared) / static_cast<double>(all));
      if (!(weight >= threshold_)) continue;
      out.column.push_back(j);
      out.weight.push_back(weight);
    }
    out.partners.push_back(static_cast<int64_t>(out.column.size() - before));
  }

 private:
  // A ratio of such numbers, rounded twice, is what rounding once gives.
  double rounded(double value) const { return o_.is_double ? value : static_cast<double>(static_cast<float>(value)); }

  const Lists &rows_, &columns_, &members_;
  const AlikeOptions& o_;
  double threshold_;
  std::vector<int32_t> common_, met_;
};

}  // namespace

int64_t AlikePairs::count() const {
  int64_t total = 0;
  for (const Part& part : parts) total += static_cast<int64_t>(part.column.size());
  return total;
}

template <typename T>
void AlikePairs::write(int64_t* row, int64_t* column, T* weight) const {
  int64_t i = 0;
  for (const Part& part : parts) {
    for (const int64_t partners : part.partners) row = std::fill_n(row, partners, i++);
    column = std::copy(part.column.begin(), part.column.end(), column);
    weight = std::transform(part.weight.begin(), part.weight.end(), weight, [](double w) { return static_cast<T>(w); });
  }
}

template void AlikePairs::write(int64_t*, int64_t*, float*) const;
template void AlikePairs::write(int64_t*, int64_t*, double*) const;

std::unique_ptr<AlikePairs> alike_pairs(const LabelSets& rows, const LabelSets& columns, const AlikeOptions& options,
                                        int threads) {
  const Lists own = labels_of(rows, threads);
  const bool one = options.itself;
  const Lists others = one ? Lists() : labels_of(columns, threads);
  const Lists& partners = one ? own : others;
  const Lists members = members_of(partners, columns.classes + 1);
  int64_t shared = 0;
  for (const int32_t label : own.number) shared += members.size(label);
  if (shared > options.most_shared) return nullptr;
  // Few tasks: each has counters of all columns.
  const int64_t each = std::max(kRows, (rows.n + 8 * threads - 1) / (8 * threads));
  auto found = std::make_unique<AlikePairs>();
  found->parts.resize((rows.n + each - 1) / each);
  for_rows(rows.n, each, threads, [&](int64_t task, int64_t first, int64_t last) {
    Search search(own, partners, members, options);
    for (int64_t i = first; i < last; ++i) search.add_partners(i, found->parts[task]);
  });
  return found;
}

}  // namespace pml_fast
