// A parallel for over whichever OpenMP runtime the process already runs (torch's own), so that two thread pools never compete.
#pragma once

#include <cstdint>

namespace pml_fast {

using Task = void (*)(void* data, int64_t index);

// Runs task(data, 0 .. count-1) on up to `threads` threads. Each index runs once; which thread runs it never changes a result.
void parallel_for(int64_t count, int threads, Task task, void* data);

template <typename F>
void parallel_for(int64_t count, int threads, F&& body) {
  parallel_for(count, threads, [](void* data, int64_t index) { (*static_cast<F*>(data))(index); }, &body);
}

// The name of what runs the threads: "openmp" when torch's runtime was found, else "serial".
const char* parallel_runtime();

}  // namespace pml_fast
