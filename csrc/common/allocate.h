// Outputs of the ops, directly from the allocator: torch::stable::new_empty goes through the dispatcher, which at small
// batches with four outputs costs a tenth of the call.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>

namespace fastood {

// An uninitialised tensor on the device of `like`.
template <size_t kDims>
torch::stable::Tensor allocate_strided(const torch::stable::Tensor& like, const std::array<int64_t, kDims>& sizes,
                                       const std::array<int64_t, kDims>& strides, torch::headeronly::ScalarType dtype) {
  int32_t device_type = 0;
  int32_t device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle tensor = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(kDims, sizes.data(), strides.data(), static_cast<int32_t>(dtype),
                                                  device_type, device_index, &tensor));
  return torch::stable::Tensor(tensor);
}

// An uninitialised contiguous tensor on the device of `like`.
template <size_t kDims>
torch::stable::Tensor allocate(const torch::stable::Tensor& like, const std::array<int64_t, kDims>& sizes,
                               torch::headeronly::ScalarType dtype) {
  std::array<int64_t, kDims> strides;
  int64_t stride = 1;
  for (size_t dim = kDims; dim-- > 0;) {
    strides[dim] = stride;
    stride *= sizes[dim] > 0 ? sizes[dim] : 1;
  }
  return allocate_strided(like, sizes, strides, dtype);
}

inline torch::stable::Tensor allocate_scalar(const torch::stable::Tensor& like, torch::headeronly::ScalarType dtype) {
  return allocate(like, std::array<int64_t, 0>{}, dtype);
}

}  // namespace fastood
