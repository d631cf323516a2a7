// Launcher of the detection-score kernel: torch-free, so that a .cu compiles in seconds and needs no torch headers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/logit_type.h"
#include "math.h"

namespace fastood::logit_scores {

// T below is the compute type: double for float64 logits, float for all others.
struct LogitScoresParams {
  LogitType type;
  ScoreSettings settings;
  const void* logits;   // [N, K + num_reject], rows row_stride apart
  void* scores;         // T [S, N], one line per score of the mask
  int64_t num_rows;     // N
  int64_t num_classes;  // K, without reject classes
  int64_t row_stride;
};

cudaError_t launch_logit_scores(const LogitScoresParams& params, cudaStream_t stream);

}  // namespace fastood::logit_scores
