// Launchers of the outlier-loss kernels: torch-free, so that a .cu compiles in seconds and needs no torch headers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/logit_type.h"
#include "losses.h"

namespace fastood::outlier_loss {

// T below is the compute type: double for float64 logits, float for all others.
struct OutlierLossParams {
  LogitType type;
  LossSettings settings;
  const void* logits;      // [N, K], rows row_stride apart
  const int64_t* targets;  // [N], or null for background throughout
  const void* weight;      // T [N], or null for all ones
  const void* uniform01;   // T [N], or null
  void* per_sample;        // T [N]
  void* row_stats;         // T [N, kRowStats] of losses.h
  double* factors;         // [kNumFactors]
  void* loss;              // T []
  void* workspace;         // workspace_bytes(N, K), forward only
  const void* grad_loss;   // T [], backward only
  void* grad_logits;       // as logits, [N, K] contiguous, backward only
  int64_t num_rows;        // N
  int64_t num_classes;     // K
  int64_t row_stride;
};

// The workspace of forward: the totals of every block and a counter of those that are done.
int64_t outlier_loss_workspace_bytes(int64_t num_rows, int64_t num_classes);

cudaError_t launch_outlier_loss_forward(const OutlierLossParams& params, cudaStream_t stream);
cudaError_t launch_outlier_loss_backward(const OutlierLossParams& params, cudaStream_t stream);

}  // namespace fastood::outlier_loss
