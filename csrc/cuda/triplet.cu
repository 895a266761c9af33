#include <algorithm>

#include "block_team.cuh"
#include "errors.h"
#include "triplet.h"

namespace pml_fast {
namespace cuda {
namespace {

constexpr int kThreads = 256;
// Classes up to these sizes are sorted in shared memory: the small size leaves room for many blocks on a multiprocessor.
constexpr int64_t kSmall = 512, kLarge = 8192;
// Blocks with room of their own in device memory, for larger classes.
constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;

// Rows whose class has more than `least` and at most `capacity` columns; `workspace` has room for each block, or is null: then
// the block's shared memory has.
__global__ void __launch_bounds__(kThreads, 3) anchors(TripletStrip strip, int64_t least, int64_t capacity, char* workspace) {
  extern __shared__ uint64_t shared[];
  const BlockTeam<kThreads> team;
  void* memory = workspace == nullptr ? static_cast<void*>(shared) : workspace + blockIdx.x * AnchorSpace::bytes(capacity);
  const AnchorSpace space = AnchorSpace::in(memory, capacity);
  for (int64_t row = blockIdx.x; row < strip.rows; row += gridDim.x) {
    const int64_t i = strip.first + row, size = strip.end[i] - strip.begin[i];
    if (size > least && size <= capacity) triplets_of_row(team, strip, row, space);
  }
}

int64_t power_of_two(int64_t size) {
  int64_t power = 1;
  while (power < size) power *= 2;
  return power;
}

int64_t blocks_with_workspace(int64_t columns) {
  return std::clamp<int64_t>(kWorkspaceBytes / AnchorSpace::bytes(power_of_two(columns)), 1, 512);
}

void launch(const TripletStrip& strip, int64_t least, int64_t capacity, cudaStream_t stream) {
  const int bytes = static_cast<int>(AnchorSpace::bytes(capacity));
  check(cudaFuncSetAttribute(anchors, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "triplets: shared memory");
  anchors<<<static_cast<unsigned>(strip.rows), kThreads, bytes, stream>>>(strip, least, capacity, nullptr);
  check(cudaGetLastError(), "triplets");
}

}  // namespace

int64_t triplet_workspace(int64_t columns) {
  return columns <= kLarge ? 0 : blocks_with_workspace(columns) * AnchorSpace::bytes(power_of_two(columns));
}

void launch_triplets(const TripletStrip& strip, void* workspace, void* stream_address) {
  if (strip.rows == 0) return;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_address);
  launch(strip, -1, kSmall, stream);
  // Which of the launches finds rows to work on is known to the device alone.
  if (strip.m > kSmall) launch(strip, kSmall, kLarge, stream);
  if (strip.m <= kLarge) return;
  const int64_t blocks = std::min(blocks_with_workspace(strip.m), strip.rows);
  anchors<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(strip, kLarge, power_of_two(strip.m),
                                                                  static_cast<char*>(workspace));
  check(cudaGetLastError(), "triplets of large classes");
}

}  // namespace cuda
}  // namespace pml_fast
