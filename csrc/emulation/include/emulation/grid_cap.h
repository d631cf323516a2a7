// The cap of csrc/common/grid_limit.h: in a grid of few blocks every grid-stride loop takes a second turn.
#pragma once

namespace emulation {

// The argument of emu_set_max_blocks, or the largest grid where it is 0.
long long cap_of_blocks();

}  // namespace emulation

// For kernels, and for ops, whose workspaces depend on the number of blocks.
#define FASTOOD_TEST_MAX_BLOCKS ::emulation::cap_of_blocks()
