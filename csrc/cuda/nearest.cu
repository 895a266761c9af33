#include "block_team.cuh"
#include "errors.h"
#include "nearest.h"

namespace pml_fast {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) nearest_columns(NearestStrip strip, int64_t* keys) {
  __shared__ NearestSpace space;
  nearest_of_row(BlockTeam<kThreads>(), strip, blockIdx.x, space, keys + blockIdx.x * strip.k);
}

}  // namespace

void launch_nearest(const NearestStrip& strip, int64_t* keys, void* stream) {
  if (strip.rows == 0 || strip.k == 0) return;
  nearest_columns<<<static_cast<unsigned>(strip.rows), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(strip, keys);
  check(cudaGetLastError(), "nearest columns");
}

}  // namespace cuda
}  // namespace pml_fast
