#include "parallel.h"

#include <atomic>
#include <stdexcept>

#if defined(__unix__) || defined(__APPLE__)
  #include <dlfcn.h>
#endif

namespace pml_fast {
namespace {

// GCC's OpenMP entry point, which libgomp and LLVM's libomp both export.
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

GompParallel find_runtime() {
#if defined(__unix__) || defined(__APPLE__)
  return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
  return nullptr;
#endif
}

GompParallel runtime() {
  static const GompParallel found = find_runtime();
  return found;
}

struct Work {
  Task task;
  void* data;
  int64_t count;
  std::atomic<int64_t> next;
};

void run(void* pointer) {
  Work& work = *static_cast<Work*>(pointer);
  for (int64_t i = work.next++; i < work.count; i = work.next++) work.task(work.data, i);
}

}  // namespace

void parallel_for(int64_t count, int threads, Task task, void* data) {
  const GompParallel parallel = runtime();
  if (count <= 1 || threads <= 1 || parallel == nullptr) {
    for (int64_t i = 0; i < count; ++i) task(data, i);
    return;
  }
  Work work{task, data, count, {0}};
  const unsigned workers = static_cast<unsigned>(count < threads ? count : threads);
  parallel(run, &work, workers, 0);
}

const char* parallel_runtime() {
  return runtime() != nullptr ? "openmp" : "serial";
}

}  // namespace pml_fast
