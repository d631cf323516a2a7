// The number of blocks of a launch whose kernel loops over its work with a stride of the grid.
#pragma once

#include <cstdint>

namespace fastood {

// As many blocks as the work wants, at most `most`. A build for tests defines FASTOOD_TEST_MAX_BLOCKS as a number, or
// as an expression that is evaluated at each launch: with a limit of two blocks small inputs take every such loop more
// than once. A limit of 0 has no effect. Scratch that holds something per block must be sized by this function, or by
// `most`.
inline unsigned grid_limit(int64_t wanted, int64_t most) {
  int64_t limit = most;
#if defined(FASTOOD_TEST_MAX_BLOCKS)
  const int64_t test_limit = FASTOOD_TEST_MAX_BLOCKS;
  limit = test_limit > 0 && test_limit < most ? test_limit : most;
#endif
  return static_cast<unsigned>(wanted < limit ? wanted : limit);
}

}  // namespace fastood
