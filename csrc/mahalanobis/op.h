// Shared by the CPU and CUDA ops of the Mahalanobis logits: checked arguments and allocated outputs.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>

#include "../common/allocate.h"
#include "../common/checks.h"

namespace fastood::mahalanobis {

inline Tensor adjacent_rows(const Tensor& tensor) {
  const int64_t dims = tensor.dim();
  const bool contiguous = tensor.stride(dims - 1) == 1 && (dims == 1 || tensor.stride(0) == tensor.size(1));
  return contiguous ? tensor : torch::stable::contiguous(tensor);
}

struct MahalanobisInput {
  Tensor scale_tril;
  int64_t dim;
  bool is_diagonal;
  ScalarType dtype;

  explicit MahalanobisInput(const Tensor& scale) : scale_tril(scale), dim(0), is_diagonal(false), dtype() {
    dtype = scale.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "scale_tril must be float32 or float64, got ", torch::headeronly::toString(dtype));
    STD_TORCH_CHECK(scale.dim() == 1 || scale.dim() == 2, "scale_tril must be 1-D or 2-D, got ", scale.dim(), "-D");
    dim = scale.size(0);
    is_diagonal = scale.dim() == 1;
    STD_TORCH_CHECK(dim >= 1, "scale_tril must have at least one row");
    STD_TORCH_CHECK(is_diagonal || scale.size(1) == dim, "scale_tril must be square, got [", dim, ", ", scale.size(1),
                    "]");
    scale_tril = adjacent_rows(scale);
  }

  // A matrix [rows, columns] of the dtype and device of scale_tril.
  Tensor matrix(const Tensor& tensor, const char* name, int64_t columns) const {
    check_dim(tensor, name, 2);
    check_dtype(tensor, name, dtype);
    check_same_device(tensor, name, scale_tril);
    STD_TORCH_CHECK(tensor.size(1) == columns, name, " must have ", columns, " columns, got ", tensor.size(1));
    return adjacent_rows(tensor);
  }
};

struct MahalanobisForwardInput : MahalanobisInput {
  Tensor features;
  Tensor means;
  int64_t num_features;
  int64_t num_classes;

  MahalanobisForwardInput(const Tensor& features_, const Tensor& means_, const Tensor& scale)
      : MahalanobisInput(scale),
        features(matrix(features_, "features", dim)),
        means(matrix(means_, "means", dim)),
        num_features(features.size(0)),
        num_classes(means.size(0)) {
    STD_TORCH_CHECK(num_classes >= 1, "means must have at least one row");
  }

  Tensor empty(int64_t rows, int64_t columns) const {
    return allocate(features, std::array<int64_t, 2>{rows, columns}, dtype);
  }
};

struct MahalanobisBackwardInput : MahalanobisInput {
  Tensor grad;
  Tensor residual;
  Tensor whitened_means;
  Tensor nearest;
  int64_t num_features;
  int64_t num_classes;

  MahalanobisBackwardInput(const Tensor& grad_, const Tensor& residual_, const Tensor& whitened_means_,
                           const Tensor& nearest_, const Tensor& scale)
      : MahalanobisInput(scale),
        grad(matrix(grad_, "grad", matrix_rows(whitened_means_, "whitened_means"))),
        residual(matrix(residual_, "residual", dim)),
        whitened_means(matrix(whitened_means_, "whitened_means", dim)),
        nearest(nearest_),
        num_features(residual.size(0)),
        num_classes(whitened_means.size(0)) {
    check_size(grad, "grad", num_features);
    check_dim(nearest, "nearest", 1);
    check_size(nearest, "nearest", num_features);
    check_dtype(nearest, "nearest", ScalarType::Long);
    check_same_device(nearest, "nearest", scale_tril);
    nearest = adjacent_rows(nearest);
  }

  Tensor empty_like_features() const { return allocate(residual, std::array<int64_t, 2>{num_features, dim}, dtype); }
  Tensor empty_like_means() const { return allocate(residual, std::array<int64_t, 2>{num_classes, dim}, dtype); }
  Tensor empty_like_scale() const {
    return is_diagonal ? allocate(residual, std::array<int64_t, 1>{dim}, dtype)
                       : allocate(residual, std::array<int64_t, 2>{dim, dim}, dtype);
  }
};

}  // namespace fastood::mahalanobis
