#pragma once

#include "../engine/nearest_row.h"

namespace pml_fast {
namespace cuda {

// The keys [rows, k] of the closest columns of a strip's rows, in no order. Waits for nothing.
void launch_nearest(const NearestStrip& strip, int64_t* keys, void* stream);

}  // namespace cuda
}  // namespace pml_fast
