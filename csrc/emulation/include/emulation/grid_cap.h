// What csrc/common/grid_limit.h caps grids at: a grid of few blocks sends every grid-stride loop into a second turn.
#pragma once

namespace emulation {

// What emu_set_max_blocks set, or a number that caps nothing.
long long cap_of_blocks();

}  // namespace emulation

// Of kernels and of ops, whose workspaces depend on it.
#define FASTOOD_TEST_MAX_BLOCKS ::emulation::cap_of_blocks()
