// Launchers of the Mahalanobis kernels: torch-free, so that a .cu compiles in seconds and needs no torch headers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastood::mahalanobis {

// T below is double where float64, else float. All tensors are contiguous.
struct MahalanobisShape {
  int64_t num_samples;   // N
  int64_t num_classes;   // K
  int64_t num_features;  // d
  bool float64;
  bool diagonal;  // whether L is [d]
};

struct MahalanobisForwardParams {
  MahalanobisShape shape;
  const void* features;  // T [N, d]
  const void* means;     // T [K, d]
  const void* factor;    // T, L [d, d] or [d]
  void* logits;          // T [N, K]
  void* residual;        // T [N, d]
  void* whitened_means;  // T [K, d]
  int64_t* nearest;      // [N]
  void* workspace;       // mahalanobis_forward_workspace_bytes
};

struct MahalanobisBackwardParams {
  MahalanobisShape shape;
  const void* grad;            // T [N, K]
  const void* residual;        // T [N, d]
  const void* whitened_means;  // T [K, d]
  const int64_t* nearest;      // [N]
  const void* factor;          // T, L [d, d] or [d]
  void* grad_features;         // T [N, d]
  void* grad_means;            // T [K, d]
  void* grad_factor;           // T, as factor
  void* workspace;             // mahalanobis_backward_workspace_bytes
};

int64_t mahalanobis_forward_workspace_bytes(const MahalanobisShape& shape);
int64_t mahalanobis_backward_workspace_bytes(const MahalanobisShape& shape);
cudaError_t launch_mahalanobis_forward(const MahalanobisForwardParams& params, cudaStream_t stream);
cudaError_t launch_mahalanobis_backward(const MahalanobisBackwardParams& params, cudaStream_t stream);

}  // namespace fastood::mahalanobis
