// Shared by the CPU and CUDA ops of the background pool: the checked state and batch.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <limits>
#include <optional>

#include "../common/checks.h"
#include "math.h"
#include "status.h"

namespace fastood::background_pool {

inline void check_vector(const Tensor& tensor, const char* name, ScalarType dtype, const Tensor& omega) {
  check_dim(tensor, name, 1);
  check_dtype(tensor, name, dtype);
  check_same_device(tensor, name, omega);
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

inline void check_omega(const Tensor& omega, double epsilon) {
  check_vector(omega, "omega", ScalarType::Float, omega);
  STD_TORCH_CHECK(omega.numel() >= 1, "omega must have at least one example");
  STD_TORCH_CHECK(epsilon >= 0 && epsilon <= 1, "epsilon must be in [0, 1], got ", epsilon);
}

inline void check_step(double momentum, double lr) {
  STD_TORCH_CHECK(momentum >= 0 && momentum < 1, "momentum must be in [0, 1), got ", momentum);
  // Kernels step in float32: an infinite step times a gradient of zero is NaN.
  STD_TORCH_CHECK(std::fabs(lr) <= std::numeric_limits<float>::max(), "lr must be finite in float32, got ", lr);
}

inline void check_stats(const Tensor& stats, const Tensor& omega) {
  check_vector(stats, "stats", ScalarType::Double, omega);
  check_size(stats, "stats", kStats);
}

inline void check_masses(const Tensor& masses, const Tensor& omega) {
  check_vector(masses, "masses", ScalarType::Double, omega);
  check_size(masses, "masses", pool_layout(omega.numel()).numel);
}

}  // namespace fastood::background_pool
