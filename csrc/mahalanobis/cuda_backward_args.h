// Mahalanobis logits backward, as programs over threads (cuda_program.h). r(n) the nearest mean of sample n, R the upstream
// gradient without the entries g_n at (n, r(n)), rho and kappa its row and column sums, y_n = u_n + c_r(n). In order:
//
//   pairs    P_n = -2 (rho_n y_n - (R C)_n);  dU_n = P_n - 2 g_n u_n;  Q_i = 2 ((R^T Y)_i - kappa_i c_i)
//   classes  dC_i = Q_i + sum_{n: r(n) = i} P_n: a launch of its own only where N + K > kMaxOwnClassSums
//   solve    dZ = dU L^-1;  dM~ = dC L^-1
//   factor   dL = -tril(dZ^T U + dM~^T C);  dM_i = dM~_i - sum_{n: r(n) = i} dZ_n
//   sum      of the shares of dL, where there are several
//
// Nothing cancels for a sample on its mean: opposite terms of its own class are never added. All in T; sums
// over samples are split into shares that are added in a fixed order, so that results repeat bit for bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/cuda_program.h"
#include "../common/in_range.h"

namespace fastood::mahalanobis {

constexpr int64_t kMaxOwnClassSums = 1024;
constexpr int64_t kShare = 512;         // samples of a share, at least
constexpr int64_t kWantedBlocks = 264;  // two on each of the 132 multiprocessors of an H100

template <typename T>
struct BackwardArgs {
  const T* grad;            // [N, K]
  const T* residual;        // U [N, d]
  const T* whitened_means;  // C [K, d]
  const int64_t* nearest;   // [N]
  const T* factor;          // L [d, d], or [d] where diagonal
  bool diagonal;
  int64_t num_samples, num_classes, num_features;
  T* grad_features;     // dU, then dZ [N, d]
  T* grad_means;        // [K, d]
  T* grad_factor;       // as factor
  T* sample_gradients;  // P [N, d]
  T* class_gradients;   // shares of Q [class_shares, K, d]; dC and dM~ in the first of them
  T* factor_gradients;  // shares of dL [factor_shares, factor_size], where there are several
  int64_t class_shares, factor_shares;
  bool own_class_sums;  // `solve` makes dC; only with one share of Q

  FASTOOD_HD int64_t num_rows() const { return num_samples + num_classes; }
  FASTOOD_HD int64_t factor_size() const { return diagonal ? num_features : num_features * num_features; }

  FASTOOD_HD T other_grad(int64_t n, int64_t i) const { return nearest[n] == i ? T(0) : grad[n * num_classes + i]; }
  // NaN where there is no such class, which a check on the host could find only by waiting for the device.
  FASTOOD_HD T own_grad(int64_t n) const {
    return in_range(nearest[n], num_classes) ? grad[n * num_classes + nearest[n]] : static_cast<T>(NAN);
  }
  FASTOOD_HD T whitened(int64_t n, int64_t j) const {
    const T own =
        in_range(nearest[n], num_classes) ? whitened_means[nearest[n] * num_features + j] : static_cast<T>(NAN);
    return residual[n * num_features + j] + own;
  }
};

// Into how many shares a sum over `size` rows is split, given how many blocks one share keeps busy.
FASTOOD_HD int64_t num_shares(int64_t size, int64_t blocks) {
  const int64_t most = size <= kMaxOwnClassSums ? 1 : ceil_div(size, kShare);
  const int64_t wanted = blocks < kWantedBlocks ? kWantedBlocks / blocks : 1;
  return most < wanted ? most : wanted;
}

}  // namespace fastood::mahalanobis
