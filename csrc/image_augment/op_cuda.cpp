// torch.ops.fastood.augment_images on CUDA: checks, allocation, device, stream. No call synchronises with the device, so that
// values are not checked: an image is NaN where its index, row or column is out of range.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/cuda_stream.h"
#include "cuda.h"
#include "op.h"

namespace fastood::image_augment {
namespace {

Tensor augment_images_cuda(const Tensor& images, const Tensor& index, const Tensor& rows, const Tensor& columns,
                           const Tensor& flip, int64_t padding, std::vector<double> mean, std::vector<double> std,
                           ScalarType dtype, bool channels_last) {
  const AugmentImagesInput in(images, index, rows, columns, flip, padding, mean, std, dtype, channels_last);
  // Positions within an image are 32-bit integers, including a run of results past its end.
  STD_TORCH_CHECK(in.params.image_size() < int64_t{1} << 31, "images must have fewer than 2^31 pixels each, got ",
                  in.params.image_size());
  const torch::stable::accelerator::DeviceGuard guard(images.get_device_index());
  const Tensor result = in.empty_batch();
  const PixelType type = dtype == ScalarType::Float      ? PixelType::kFloat32
                         : dtype == ScalarType::BFloat16 ? PixelType::kBFloat16
                                                         : PixelType::kFloat16;
  const cudaStream_t stream = current_cuda_stream(images.get_device_index());
  check_launch(launch_augment_images(in.params, type, result.mutable_data_ptr(), stream), "augment_images");
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CUDA, m) {
  m.impl("augment_images", TORCH_BOX(&augment_images_cuda));
}

}  // namespace fastood::image_augment
