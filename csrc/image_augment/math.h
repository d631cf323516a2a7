// Crop, mirroring and normalisation of stored images, for host and device.
//
// Pixel (y, x) of an augmented image is pixel (y + row - p, x' + column - p) of the stored one, x' = width - 1 - x where
// it is mirrored and x elsewhere; beyond its edges the stored image is 0. Its value is (byte/255 - mean)/std, every
// operation rounded to float32: what PyTorch computes from images.float(), to the bit, on every device.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace fastood::image_augment {

// Channels with scales of their own. A single mean and deviation works for any number of channels.
constexpr int64_t kMaxScales = 16;

// Beyond any image's size a crop is empty; a CPU thread keeps rows of the padded width.
constexpr int64_t kMaxPadding = 1 << 16;

struct PixelScale {
  float mean;
  float std;

  FASTOOD_HD float operator()(uint8_t byte) const {
    // byte/255 rounded to nearest without a division: the first product is exact, the second adds accuracy of 2^-8 of a
    // unit in the last place, and no byte/255 is that close to a rounding boundary. Contraction to a multiply-add does
    // not change the result.
    constexpr float kHigh = 0x1.01p-8f;
    constexpr float kLow = 0x1.010102p-24f;
    const auto x = static_cast<float>(static_cast<int32_t>(byte));
    return (x * kHigh + x * kLow - mean) / std;
  }
};

enum class PixelType { kFloat32, kBFloat16, kFloat16 };

// By value to the kernels. Strides count bytes, which are pixels.
struct AugmentParams {
  const uint8_t* images;  // [num_images, channels, height, width]
  int64_t image_stride;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;
  int64_t num_images;
  int64_t channels;
  int64_t height;
  int64_t width;
  const int64_t* index;    // [batch], which image
  const int64_t* rows;     // [batch], first row of the crop in the padded image, 0…2 padding
  const int64_t* columns;  // [batch], first column of the crop, 0…2 padding
  const bool* flip;        // [batch]
  int64_t batch;
  int64_t padding;
  int64_t num_scales;  // 1 or channels
  PixelScale scales[kMaxScales];
  bool channels_last;  // layout of the results: [batch, height, width, channels], else [batch, channels, height, width]

  FASTOOD_HD const PixelScale& scale(int64_t channel) const { return scales[num_scales == 1 ? 0 : channel]; }
  FASTOOD_HD int64_t image_size() const { return channels * height * width; }
};

// Where the pixels of one augmented image are read.
struct Crop {
  const uint8_t* image = nullptr;
  int64_t top = 0;   // of the crop in the stored image: -padding…padding
  int64_t left = 0;  // of the crop in the stored image: -padding…padding
  bool mirrored = false;

  Crop() = default;

  FASTOOD_HD Crop(const AugmentParams& p, int64_t b)
      : image(p.images + p.index[b] * p.image_stride),
        top(p.rows[b] - p.padding),
        left(p.columns[b] - p.padding),
        mirrored(p.flip[b]) {}

  FASTOOD_HD uint8_t pixel(const AugmentParams& p, int64_t channel, int64_t y, int64_t x) const {
    const int64_t row = y + top;
    const int64_t column = (mirrored ? p.width - 1 - x : x) + left;
    const bool inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
    return inside ? image[channel * p.channel_stride + row * p.row_stride + column * p.column_stride] : uint8_t{0};
  }
};

}  // namespace fastood::image_augment
