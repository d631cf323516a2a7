// Included before every translated .cu file, as nvcc includes cuda_runtime.h.
#pragma once

#include "../cuda_runtime.h"
#if defined(FASTOOD_EMULATION_MUTANTS)
#include "mutants.h"
#endif

namespace emulation {

// What emu_set_max_blocks set, or a number that caps nothing.
long long cap_of_blocks();

}  // namespace emulation

// csrc/common/grid_limit.h: a grid of few blocks sends every grid-stride loop into a second turn.
#define FASTOOD_TEST_MAX_BLOCKS ::emulation::cap_of_blocks()
