// Memory layout of a background pool, equal on the CPU and on CUDA.
//
//     stats  [7]   Z = sum of masses, S = sum w, Q = sum w^2, their quanta, bound >= every mass         float64
//                        Z
//     level k  [..64]    |     each node the sum of 64 children, of which the last may be fewer         float64
//                  .-----+-----.
//     level 2  [N/4096, padded to 64]                                                                  float64
//              .---+---.
//     level 1  [N/64, padded to 64]     a leaf block: 64 examples, 256 bytes of omega                   float64
//            ..|..
//     omega    [N]  weight w = softplus(omega), mass p = w^epsilon; below kOmegaMin: no weight at all   float32
//     velocity [N]                                                                                      float32
//
// Bytes per example: 4 + 4 + 8/64 + 8/4096 + ... = 8.13; 10^9 examples are 8.1 GB and five levels. Masses of examples are
// not stored: they are computed from omega when they are needed, 64 at a time, which takes about as long as the cache
// miss that loads omega.
//
// Design: 64 children are 8 cache lines of sums, or two per lane of a warp. Exact sums (below) are updated by adding
// differences, so that a step on B examples takes B * levels additions, independent of N.
//
// Fixed point in float64. Every number that is summed over the pool is first rounded to a multiple of a quantum, a power
// of two about 2^-50 of the total. float64 adds multiples of a quantum exactly while the total stays below 2^53 quanta, so
// that sums do not depend on the order of their terms: the same for any number of threads, for any order of atomics, on
// CPU and GPU, for a tree updated by differences and one built from scratch. A draw by a 53-bit uniform resolves 2^-53
// of the total with any data structure; the quanta give up a few of these bits. The quanta are chosen at build and
// again when a total leaves kLowTotal ... kHighTotal quanta.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace fastood::background_pool {

constexpr int64_t kFanOut = 64;
constexpr int kFanOutBits = 6;
// 64^7 = 2^42 examples, more than fit into any memory.
constexpr int kMaxLevels = 7;

// Indices into stats.
enum PoolStat { kMassTotal, kWeightTotal, kSquareTotal, kMassQuantum, kWeightQuantum, kSquareQuantum, kBound, kStats };

// Totals are set to (2^49, 2^50] quanta: two bits are left above for weights that grow, below the 2^53 at which additions
// would round, and three below, so that no mass is rounded by more than 2^-47 of the total.
constexpr double kLowTotal = 0x1p46;
constexpr double kHighTotal = 0x1p52;

struct PoolLayout {
  int64_t num_examples;
  int num_levels;
  int64_t numel;               // of all levels together
  int64_t offset[kMaxLevels];  // of level k + 1 in `masses`
  int64_t size[kMaxLevels];    // nodes with padding, a multiple of kFanOut

  // Nodes of level k + 1 that have children; the rest of `size` is padding.
  FASTOOD_HD int64_t num_nodes(int k) const {
    return k == 0 ? (num_examples + kFanOut - 1) / kFanOut : size[k - 1] / kFanOut;
  }
};

FASTOOD_HD PoolLayout pool_layout(int64_t num_examples) {
  PoolLayout layout{};
  layout.num_examples = num_examples;
  int64_t nodes = num_examples;
  do {
    nodes = (nodes + kFanOut - 1) / kFanOut;
    const int64_t padded = (nodes + kFanOut - 1) / kFanOut * kFanOut;
    layout.offset[layout.num_levels] = layout.numel;
    layout.size[layout.num_levels] = padded;
    layout.numel += padded;
    ++layout.num_levels;
  } while (nodes > kFanOut);
  return layout;
}

}  // namespace fastood::background_pool
