// Checks for direct callers of torch.ops.fastood.*; fastood.ops raises ValueError and TypeError before they are reached.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace fastood {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_dim(const Tensor& tensor, const char* name, int64_t dim) {
  STD_TORCH_CHECK(tensor.dim() == dim, name, " must be ", dim, "-D, got ", tensor.dim(), "-D");
}

// Checks that the tensor is a matrix and returns its number of rows.
inline int64_t matrix_rows(const Tensor& tensor, const char* name) {
  check_dim(tensor, name, 2);
  return tensor.size(0);
}

inline void check_size(const Tensor& tensor, const char* name, int64_t size) {
  STD_TORCH_CHECK(tensor.dim() >= 1 && tensor.size(0) == size, name, " must have ", size, " rows, got ",
                  tensor.dim() >= 1 ? tensor.size(0) : 0);
}

inline void check_dtype(const Tensor& tensor, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must be ", torch::headeronly::toString(dtype), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

inline void check_same_device(const Tensor& tensor, const char* name, const Tensor& reference) {
  STD_TORCH_CHECK(tensor.device() == reference.device(), name, " must be on the device of the first argument");
}

}  // namespace fastood
