// Shared by the CPU and CUDA ops of the augmentation: checked arguments and the allocated output.
#pragma once

#include <array>
#include <vector>

#include "../common/allocate.h"
#include "../common/checks.h"
#include "math.h"

namespace fastood::image_augment {

struct AugmentImagesInput {
  const Tensor& images;
  ScalarType dtype;
  AugmentParams params{};

  AugmentImagesInput(const Tensor& images_, const Tensor& index, const Tensor& rows, const Tensor& columns,
                     const Tensor& flip, int64_t padding, const std::vector<double>& mean,
                     const std::vector<double>& std, ScalarType dtype_, bool channels_last)
      : images(images_), dtype(dtype_) {
    check_dim(images, "images", 4);
    check_dtype(images, "images", ScalarType::Byte);
    STD_TORCH_CHECK(padding >= 0 && padding <= kMaxPadding, "padding must be in [0, ", kMaxPadding, "], got ", padding);
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
                    "dtype must be float32, bfloat16 or float16, got ", torch::headeronly::toString(dtype));
    params.images = static_cast<const uint8_t*>(images.const_data_ptr());
    params.image_stride = images.stride(0);
    params.channel_stride = images.stride(1);
    params.row_stride = images.stride(2);
    params.column_stride = images.stride(3);
    params.num_images = images.size(0);
    params.channels = images.size(1);
    params.height = images.size(2);
    params.width = images.size(3);
    check_dim(index, "index", 1);
    params.batch = index.size(0);
    params.index = static_cast<const int64_t*>(per_image(index, "index", ScalarType::Long));
    params.rows = static_cast<const int64_t*>(per_image(rows, "rows", ScalarType::Long));
    params.columns = static_cast<const int64_t*>(per_image(columns, "columns", ScalarType::Long));
    params.flip = static_cast<const bool*>(per_image(flip, "flip", ScalarType::Bool));
    params.padding = padding;
    params.channels_last = channels_last;
    set_scales(mean, std);
  }

  // [B, C, H, W].
  Tensor empty_batch() const {
    const int64_t C = params.channels;
    const int64_t H = params.height;
    const int64_t W = params.width;
    const std::array<int64_t, 4> sizes{params.batch, C, H, W};
    return params.channels_last ? allocate_strided(images, sizes, {H * W * C, 1, W * C, C}, dtype)
                                : allocate(images, sizes, dtype);
  }

 private:
  const void* per_image(const Tensor& tensor, const char* name, ScalarType type) const {
    check_dim(tensor, name, 1);
    check_size(tensor, name, params.batch);
    check_dtype(tensor, name, type);
    check_same_device(tensor, name, images);
    STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
    return tensor.const_data_ptr();
  }

  void set_scales(const std::vector<double>& mean, const std::vector<double>& std) {
    params.num_scales = static_cast<int64_t>(mean.size());
    STD_TORCH_CHECK(params.num_scales == 1 || params.num_scales == params.channels, "mean must have 1 number or ",
                    params.channels, ", one per channel, got ", params.num_scales);
    STD_TORCH_CHECK(params.num_scales <= kMaxScales, "mean must have at most ", kMaxScales, " numbers, got ",
                    params.num_scales);
    STD_TORCH_CHECK(std.size() == mean.size(), "std must have ", mean.size(), " numbers like mean, got ", std.size());
    for (size_t i = 0; i < mean.size(); ++i) {
      STD_TORCH_CHECK(static_cast<float>(std[i]) > 0, "std must be above 0 in float32, got ", std[i]);
      params.scales[i] = {static_cast<float>(mean[i]), static_cast<float>(std[i])};
    }
  }
};

}  // namespace fastood::image_augment
