// A batch of drawn examples on the CPU: its weighted loss, and its examples once each.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "cpu.h"

namespace fastood::background_pool {

// Totals of the whole pool and batch for a step, over all ranks if the pool is sharded.
struct PoolReach {
  double mass_total;    // Z
  double weight_total;  // S
  double loss;          // L = 1/B sum_b r_b l_b
  double batch;         // B
};

// Partial sums by position modulo this, then folded in halves: the order of a block of threads, so that CUDA and the CPU
// round alike.
constexpr int64_t kLossLanes = 256;

inline double batch_loss(const float* omega, const int64_t* index, const double* loss, int64_t count, PoolPower power,
                         const PoolReach& reach) {
  std::array<double, kLossLanes> lanes{};
  alignas(64) float gathered[kLossLanes];
  alignas(64) float weight[kLossLanes];
  alignas(64) float mass[kLossLanes];
  alignas(64) float rest[kLossLanes];
  const double ratio = reach.mass_total / reach.weight_total;
  for (int64_t begin = 0; begin < count; begin += kLossLanes) {
    const int64_t size = std::min(kLossLanes, count - begin);
    for (int64_t b = 0; b < size; ++b) {
      gathered[b] = omega[index[begin + b]];
    }
    FASTOOD_CPU_DISPATCH(pool_evaluate)(gathered, size, power, weight, mass, rest);
    for (int64_t b = 0; b < size; ++b) {
      lanes[b] += weight[b] == 0 ? 0 : ratio * rest[b] * loss[begin + b];
    }
  }
  for (int64_t half = kLossLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) {
      lanes[lane] += lanes[lane + half];
    }
  }
  return lanes[0] / static_cast<double>(count);
}

// Each drawn example once, in order of first appearance, with the sum of its losses in batch order.
struct PoolBatch {
  std::vector<int64_t> index;
  std::vector<float> loss;

  PoolBatch(const int64_t* drawn, const double* losses, int64_t count) {
    // Open addressing in a table at most half full; entries are positions in `index`.
    size_t slots = 16;
    while (slots < 2 * static_cast<size_t>(count)) {
      slots *= 2;
    }
    std::vector<int32_t> table(slots, -1);
    std::vector<double> sums;
    index.reserve(count);
    sums.reserve(count);
    for (int64_t b = 0; b < count; ++b) {
      // Fibonacci hashing: neighbours in the pool are far apart in the table.
      size_t slot = (static_cast<uint64_t>(drawn[b]) * 0x9E3779B97F4A7C15u >> 32) & (slots - 1);
      while (table[slot] >= 0 && index[table[slot]] != drawn[b]) {
        slot = (slot + 1) & (slots - 1);
      }
      if (table[slot] < 0) {
        table[slot] = static_cast<int32_t>(index.size());
        index.push_back(drawn[b]);
        sums.push_back(losses[b]);
      } else {
        sums[table[slot]] += losses[b];
      }
    }
    loss.assign(sums.begin(), sums.end());
  }
};

}  // namespace fastood::background_pool
