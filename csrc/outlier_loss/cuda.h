// Launchers of the uniformity kernels: torch-free, so that a .cu compiles in seconds and needs no torch headers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/logit_type.h"

namespace fastood {

// T below is the compute type: double for float64 logits, float for all others.
struct UniformityParams {
  LogitType type;
  const void* logits;     // [N, K], rows row_stride apart
  const void* weight;     // T [N], or null for all ones
  void* per_sample;       // T [N]
  void* row_stats;        // T [N, kRowStats] of math.h
  void* loss;             // T []
  const void* grad_loss;  // T [], backward only
  void* grad_logits;      // as logits, [N, K] contiguous, backward only
  int64_t num_rows;       // N
  int64_t num_classes;    // K
  int64_t row_stride;
  bool by_weight;  // divide by the sum of weights (eq. 14), else by N (supplementary eq. 10)
};

cudaError_t launch_uniformity_forward(const UniformityParams& params, cudaStream_t stream);
cudaError_t launch_uniformity_backward(const UniformityParams& params, cudaStream_t stream);

}  // namespace fastood
