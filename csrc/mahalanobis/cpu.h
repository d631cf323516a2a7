// Kernels of the Mahalanobis logits for the CPU: single-threaded, torch-free, one copy per instruction set.
//
//     h_ni = -|y_n - c_i|^2,   y_n = L^-1 (z_n - mu),   c_i = L^-1 (m_i - mu)                        Wu 2023, eq. 0.11
//
// mu, the mean of the means, only changes how much of the vectors cancels.
#pragma once

#include <cstdint>

#include "../common/cpu_capability.h"
#include "../common/host_device.h"

namespace fastood::mahalanobis {

// L [d, d], of which only the lower triangle is read, or the diagonal [d] of a diagonal L.
template <typename T>
struct ScaleTril {
  const T* data;
  int64_t dim;
  bool is_diagonal;
};

// L is taken in blocks: their diagonal ones are inverted once, and the rest is matrix products.
constexpr int64_t kScaleBlock = 128;
constexpr int64_t num_scale_blocks(int64_t dim) {
  return (dim + kScaleBlock - 1) / kScaleBlock;
}
FASTOOD_HD constexpr int64_t scale_block_size(int64_t dim, int64_t block) {
  const int64_t rest = dim - block * kScaleBlock;
  return rest < kScaleBlock ? rest : kScaleBlock;
}

// Workspace of every kernel, in doubles.
constexpr int64_t kMahalanobisWorkspace = int64_t{1} << 18;

// Features are whitened and paired so many at a time: few enough for the level-2 cache where d is small, enough to pay for
// the packing of L where it is not.
constexpr int64_t feature_block(int64_t dim) {
  return dim < 256 ? (int64_t{1} << 17) / dim : 512;
}
// Scratch of one feature in float64 and in T, in doubles.
constexpr int64_t feature_scratch(int64_t dim) {
  return 2 * dim;
}

// Arguments of forward; N rows of features, K of means, all rows adjacent.
template <typename T>
struct MahalanobisForward {
  ScaleTril<T> scale;
  const T* features;       // [N, d]
  const T* means;          // [K, d]
  int64_t num_features;    // N
  int64_t num_classes;     // K
  const double* centre;    // [d]  mu
  const double* inverses;  // [blocks, kScaleBlock, kScaleBlock]  of the diagonal blocks of L
  double* mean_vectors;    // [K, d]  c
  double* mean_norms;      // [K]     their squares
  T* whitened_means;       // [K, d]  c in T
  T* logits;               // [N, K]
  int64_t* nearest;        // [N]
  T* residual;             // [N, d]  y_n - c_nearest(n)
};

// Arguments of backward. With r = nearest and R the upstream gradient without the entries (n, r(n)), which go to g:
//
//     P_n   = -2 (rowsum(R)_n y_n - (R C)_n)             dU_n = P_n - 2 g_n u_n
//     dC~_i = 2 ((R^T Y)_i - colsum(R)_i c_i) + sum_{n: r(n) = i} P_n
//     dZ    = dU L^-1     dM~ = dC~ L^-1     dM_i = dM~_i - sum_{n: r(n) = i} dZ_n     dL = -tril(dZ^T U + dM~^T C)
//
// which is the gradient of h as a function of u_n = L^-1 (z_n - m_r(n)) and c_i: the pair of a row and its nearest class
// enters by their difference alone, so that nothing cancels for a row on its mean.
template <typename T>
struct MahalanobisBackward {
  ScaleTril<T> scale;
  const T* grad;            // [N, K]  upstream
  const T* residual;        // [N, d]  u
  const T* whitened_means;  // [K, d]  c
  const int64_t* nearest;   // [N]
  int64_t num_features;
  int64_t num_classes;
  const double* inverses;
  T* rest;           // [N, K]  R
  T* whitened;       // [N, d]  y
  T* common;         // [N, d]  P
  T* solved_means;   // [K, d]  dC~, then dM~
  T* grad_features;  // [N, d]  dU, then dZ
  T* grad_means;     // [K, d]
  T* grad_scale;     // [d, d] or [d]
};

#define FASTOOD_CPU_KERNELS "../mahalanobis/cpu_kernels.h"
#include "../common/cpu_copies.h"

}  // namespace fastood::mahalanobis
