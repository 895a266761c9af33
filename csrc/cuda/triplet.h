#pragma once

#include "../engine/triplet_strip.h"

namespace pml_fast {
namespace cuda {

// Bytes of device memory that launch_triplets wants for classes that do not fit a block's shared memory.
int64_t triplet_workspace(int64_t columns);

// Runs a strip on a stream; waits for nothing. Throws std::runtime_error where a launch is refused.
void launch_triplets(const TripletStrip& strip, void* workspace, void* stream);

}  // namespace cuda
}  // namespace pml_fast
