// A CUDA block as the team of the row functions in csrc/engine.
#pragma once

#include "../engine/team.h"

namespace pml_fast {

// `Threads` is the size of the block, a multiple of a warp.
template <int Threads>
class BlockTeam {
 public:
  template <typename F>
  PML_FAST_HD void each(int64_t count, F&& body) const {
#ifdef __CUDA_ARCH__
    for (int64_t k = threadIdx.x; k < count; k += Threads) body(k);
#endif
  }

  template <typename F>
  PML_FAST_HD void once(F&& body) const {
#ifdef __CUDA_ARCH__
    if (threadIdx.x == 0) body();
#endif
  }

  PML_FAST_HD void sync() const {
#ifdef __CUDA_ARCH__
    __syncthreads();
#endif
  }

  PML_FAST_HD void add(int32_t* at, int32_t by) const {
#ifdef __CUDA_ARCH__
    atomicAdd(at, by);
#endif
  }

  PML_FAST_HD int32_t take(int32_t* at) const {
#ifdef __CUDA_ARCH__
    return atomicAdd(at, 1);
#else
    return *at;
#endif
  }

  // Of every thread's value, to all of them, in an order that never changes.
  template <typename V>
  PML_FAST_HD V sum(V value) const {
#ifdef __CUDA_ARCH__
    __shared__ V of_warp[Threads / 32];
    for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    V total = 0;
    for (int warp = 0; warp < Threads / 32; ++warp) total += of_warp[warp];
    __syncthreads();
    return total;
#else
    return value;
#endif
  }

  // emit(k, place) of every k in 0 .. count that is kept, in order, `place` counting on from `first`.
  template <typename Keep, typename Emit>
  PML_FAST_HD void compact(int64_t count, int64_t first, Keep&& keep, Emit&& emit) const {
#ifdef __CUDA_ARCH__
    __shared__ int of_warp[Threads / 32];
    const unsigned below = (1u << threadIdx.x % 32) - 1u;
    for (int64_t base = 0; base < count; base += Threads) {
      const int64_t k = base + threadIdx.x;
      const bool kept = k < count && keep(k);
      const unsigned ballot = __ballot_sync(0xffffffffu, kept);
      if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = __popc(ballot);
      __syncthreads();
      int64_t place = first + __popc(ballot & below);
      for (int warp = 0; warp < Threads / 32; ++warp) {
        place += warp < threadIdx.x / 32 ? of_warp[warp] : 0;
        first += of_warp[warp];
      }
      if (kept) emit(k, place);
      __syncthreads();
    }
#endif
  }
};

}  // namespace pml_fast
