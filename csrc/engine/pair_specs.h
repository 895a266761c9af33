// What each pair loss folds over an anchor's negatives, and how a row's loss and derivatives follow from its state.
// The twin of pml_fast/engine/specs: same names, same parameter order.
#pragma once

#include "pair_own_losses.h"
#include "pair_ranked_list.h"
#include "pair_soft_maxima.h"
#include "pair_softmax.h"
