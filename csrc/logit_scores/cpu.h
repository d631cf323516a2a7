// Row kernels of the detection scores for the CPU: single-threaded, torch-free, one copy per instruction set.
#pragma once

#include <cstdint>

#include "../common/cpu_capability.h"
#include "../common/logit_type.h"
#include "../common/reduced_float.h"
#include "math.h"

namespace fastood::logit_scores {

template <typename Logit>
struct ScoreRows {
  const Logit* logits;  // [num_rows, num_logits], rows row_stride apart
  int64_t row_stride;
  int64_t num_rows;
  int64_t num_logits;  // K + num_reject
};

#define FASTOOD_CPU_KERNELS "../logit_scores/cpu_kernels.h"
#include "../common/cpu_copies.h"

}  // namespace fastood::logit_scores
