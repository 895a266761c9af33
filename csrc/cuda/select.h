#pragma once

#include "../engine/select_row.h"

namespace pml_fast {
namespace cuda {

// Kept negatives and positives of each row of a strip, to counts [rows, 2]; products become scores. Waits for nothing.
void launch_count_pairs(const PairStrip& strip, int64_t* counts, void* stream);

// Writes them from places [rows, 2] of the lists on.
void launch_write_pairs(const PairStrip& strip, const int64_t* places, const PairLists& lists, void* stream);

}  // namespace cuda
}  // namespace pml_fast
