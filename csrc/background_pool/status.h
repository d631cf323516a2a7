// Status of a step, on the CPU and on CUDA.
#pragma once

#include <cstdint>

#include "layout.h"

namespace fastood::background_pool {

// Result of `background_pool_ascend`: status[0], and in status[1] the batch position that it refers to. After kBadIndex,
// kBadLoss and kTooLarge the pool is unchanged.
enum PoolStatus : int64_t { kDone, kBadIndex, kBadLoss, kTooLarge, kNeedsBuild };

// |gradient| <= 2 L; with these on 2 L lr and on L / Z and L / S, every intermediate value stays a finite float32.
constexpr double kLargestStep = 1e30;
constexpr double kLargestGain = 1e38;

// False for NaN.
FASTOOD_HD bool is_small_enough(double loss, double lr, double mass_total, double weight_total) {
  return 2 * loss * (lr < 1 ? 1.0 : lr) <= kLargestStep && loss <= kLargestGain * mass_total &&
         loss <= kLargestGain * weight_total;
}

FASTOOD_HD bool has_room(double total, double quantum) {
  return total >= kLowTotal * quantum && total <= kHighTotal * quantum;
}

}  // namespace fastood::background_pool
