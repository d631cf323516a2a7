// Kernels of the detection statistics for the CPU: single-threaded, torch-free, one copy per instruction set.
#pragma once

#include <cstdint>

#include "../common/cpu_capability.h"
#include "math.h"
#include "random.h"

namespace fastood::detection_metrics {

// Ranks of every score in both classes (math.h has the definitions).
struct Ranks {
  int32_t* below;  // [num_ood]
  int32_t* upto;   // [num_ood]
  int32_t* first;  // [num_ood]
  int32_t* own;    // [num_id]
  int32_t* other;  // [num_id]
};

// Adds up kLanes partial sums pairwise, in place.
FASTOOD_HD double fold_lanes(double* lanes) {
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) {
      lanes[lane] += lanes[lane + half];
    }
  }
  return lanes[0];
}

// The sums of a pair from those of its tiles.
class TileAdder {
 public:
  FASTOOD_HD void add(int64_t tile, const RankSums& sums) {
    twice_u_ += sums.twice_u;
    cost_ = sums.cost < cost_ ? sums.cost : cost_;
    aupr_ood_[tile % kLanes] += sums.aupr_ood;
    aupr_id_[tile % kLanes] += sums.aupr_id;
  }

  FASTOOD_HD RankSums sums() { return {twice_u_, cost_, fold_lanes(aupr_ood_), fold_lanes(aupr_id_)}; }

 private:
  uint64_t twice_u_ = 0;
  int64_t cost_ = kLargestCost;
  double aupr_ood_[kLanes] = {};
  double aupr_id_[kLanes] = {};
};

// Draws taken together: their numbers stay in the level-1 cache.
constexpr int64_t kDraws = 1024;

#define FASTOOD_CPU_KERNELS "../detection_metrics/cpu_kernels.h"
#include "../common/cpu_copies.h"

}  // namespace fastood::detection_metrics
