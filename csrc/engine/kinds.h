// The names that engines, bindings and kernels share.
#pragma once

namespace pml_fast {

enum class Distance { kDot, kL2, kL2Squared };

// Which triplets a miner leaves, by how much farther the negative is than the positive.
enum class Select { kEvery, kAll, kHard, kSemihard, kEasy };

}  // namespace pml_fast
