#include "parallel.h"

#include <algorithm>
#include <atomic>

#if defined(__unix__) || defined(__APPLE__)
  #include <dlfcn.h>
#endif

namespace pml_fast {
namespace {

// What libgomp and LLVM's libomp both export: GCC's entry point of a parallel region, and a thread's number in it.
struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  int (*thread_number)();
};

template <typename Function>
Function find(const char* name) {
#if defined(__unix__) || defined(__APPLE__)
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
#else
  return nullptr;
#endif
}

const OpenMp& runtime() {
  static const OpenMp found{find<decltype(OpenMp::parallel)>("GOMP_parallel"),
                            find<decltype(OpenMp::thread_number)>("omp_get_thread_num")};
  return found;
}

constexpr int kShares = 64;

// A contiguous part of the indices, on a cache line of its own.
struct alignas(64) Share {
  std::atomic<int64_t> next;
  int64_t end;
};

// A thread works through the share of its number first: where another loop, or a matrix product, has split the same range
// among the same threads, what it touches lies in its own cache. Then it helps with what is left of the others'.
struct Work {
  Task task;
  void* data;
  int shares;
  Share share[kShares];

  void share_out(int64_t count) {
    for (int s = 0; s < shares; ++s) {
      share[s].next = count * s / shares;
      share[s].end = count * (s + 1) / shares;
    }
  }
};

void run(void* pointer) {
  Work& work = *static_cast<Work*>(pointer);
  const int own = runtime().thread_number();
  for (int s = 0; s < work.shares; ++s) {
    Share& share = work.share[(own + s) % work.shares];
    for (int64_t i = share.next++; i < share.end; i = share.next++) work.task(work.data, i);
  }
}

bool has_threads() {
  return runtime().parallel != nullptr && runtime().thread_number != nullptr;
}

}  // namespace

void parallel_for(int64_t count, int threads, Task task, void* data) {
  if (count <= 1 || threads <= 1 || !has_threads()) {
    for (int64_t i = 0; i < count; ++i) task(data, i);
    return;
  }
  const int workers = static_cast<int>(std::min<int64_t>(count, threads));
  Work work;
  work.task = task;
  work.data = data;
  work.shares = std::min(workers, kShares);
  work.share_out(count);
  runtime().parallel(run, &work, static_cast<unsigned>(workers), 0);
}

const char* parallel_runtime() {
  return has_threads() ? "openmp" : "serial";
}

}  // namespace pml_fast
