#include "block_team.cuh"
#include "errors.h"
#include "select.h"

namespace pml_fast {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) count_pairs(PairStrip strip, int64_t* counts) {
  count_pairs_of_row(BlockTeam<kThreads>(), strip, blockIdx.x, counts + 2 * blockIdx.x);
}

__global__ void __launch_bounds__(kThreads) write_pairs(PairStrip strip, const int64_t* places, PairLists lists) {
  write_pairs_of_row(BlockTeam<kThreads>(), strip, blockIdx.x, places + 2 * blockIdx.x, lists);
}

}  // namespace

void launch_count_pairs(const PairStrip& strip, int64_t* counts, void* stream) {
  if (strip.rows == 0) return;
  count_pairs<<<static_cast<unsigned>(strip.rows), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(strip, counts);
  check(cudaGetLastError(), "counting kept pairs");
}

void launch_write_pairs(const PairStrip& strip, const int64_t* places, const PairLists& lists, void* stream) {
  if (strip.rows == 0) return;
  write_pairs<<<static_cast<unsigned>(strip.rows), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(strip, places, lists);
  check(cudaGetLastError(), "writing kept pairs");
}

}  // namespace cuda
}  // namespace pml_fast
