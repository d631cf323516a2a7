// Status of a step, on the CPU and on CUDA.
#pragma once

#include <cstdint>

#include "../common/exp.h"
#include "layout.h"

namespace fastood::background_pool {

// Result of `background_pool_ascend`: status[0], and in status[1] the batch position that it refers to. After
// kBadIndex, kBadLoss and kTooLarge the pool is unchanged. kNeedsBuild: the step is done, and a total has left its
// range. Only a slice of a sharded pool returns it, because all slices need the same quanta; in a whole pool the step
// has chosen them and has built the sums again.
enum PoolStatus : int64_t { kDone, kBadIndex, kBadLoss, kTooLarge, kNeedsBuild };

// |gradient| <= 2 L; with these on 2 L lr and on L / Z and L / S, every intermediate value stays a finite float32.
constexpr double kLargestStep = 1e30;
constexpr double kLargestGain = 1e38;

// False for NaN.
FASTOOD_HD bool is_small_enough(double loss, double lr, double mass_total, double weight_total) {
  return 2 * loss * (lr < 1 ? 1.0 : lr) <= kLargestStep && loss <= kLargestGain * mass_total &&
         loss <= kLargestGain * weight_total;
}

// A power of two of which a finite total >= 0 is 2^49 to 2^50; 1 where the total is 0. From the bits of the total: its
// exponent less 49, or the smallest of normal numbers.
FASTOOD_HD double choose_quantum(double total) {
  const int64_t exponent = (bit_cast<int64_t>(total) >> 52) - 49;
  return total > 0 ? bit_cast<double>((exponent < 1 ? int64_t{1} : exponent) << 52) : 1.0;
}

FASTOOD_HD bool has_room(double total, double quantum) {
  return total >= kLowTotal * quantum && total <= kHighTotal * quantum;
}

}  // namespace fastood::background_pool
