// Augmentation of images on this machine: normalisation of every byte, and the kernels pixel by pixel against the crop's
// definition, in buffers of exactly their size for the sanitizers to watch.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "../image_augment/cpu.h"
#include "../image_augment/place.h"
#include "expect.h"

namespace {

using namespace fastood;
using namespace fastood::image_augment;
using testing::expect;

// Each operation rounded to float32; volatile keeps the compiler from contracting or reordering.
float normalised(int byte, float mean, float std) {
  volatile float fraction = static_cast<float>(byte) / 255.0f;
  volatile float centred = fraction - mean;
  volatile float scaled = centred / std;
  return scaled;
}

void test_every_byte() {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(0.01f, 1.0f);
  for (int trial = 0; trial < 200; ++trial) {
    const PixelScale scale = trial == 0 ? PixelScale{0, 1} : PixelScale{uniform(random), uniform(random)};
    for (int byte = 0; byte < 256; ++byte) {
      expect(scale(static_cast<uint8_t>(byte)) == normalised(byte, scale.mean, scale.std), "byte", byte);
    }
  }
}

struct Batch {
  AugmentParams params{};
  std::vector<uint8_t> images;
  std::vector<int64_t> index, rows, columns;
  std::vector<uint8_t> flip;

  Batch(int64_t channels, int64_t height, int64_t width, int64_t padding, bool stored_channels_last) {
    constexpr int64_t kImages = 3;
    constexpr int64_t kBatch = 17;
    std::mt19937 random(static_cast<unsigned>(channels * 100 + width));
    images.resize(static_cast<size_t>(kImages * channels * height * width));
    for (uint8_t& byte : images) byte = static_cast<uint8_t>(random());
    for (int64_t b = 0; b < kBatch; ++b) {
      index.push_back(static_cast<int64_t>(random() % kImages));
      rows.push_back(static_cast<int64_t>(random() % static_cast<unsigned>(2 * padding + 1)));
      columns.push_back(static_cast<int64_t>(random() % static_cast<unsigned>(2 * padding + 1)));
      flip.push_back(random() % 2);
    }
    rows[0] = columns[1] = 0;
    columns[0] = rows[1] = 2 * padding;
    params.images = images.data();
    params.image_stride = channels * height * width;
    params.channel_stride = stored_channels_last ? 1 : height * width;
    params.row_stride = stored_channels_last ? width * channels : width;
    params.column_stride = stored_channels_last ? channels : 1;
    params.num_images = kImages;
    params.channels = channels;
    params.height = height;
    params.width = width;
    params.index = index.data();
    params.rows = rows.data();
    params.columns = columns.data();
    params.flip = reinterpret_cast<const bool*>(flip.data());
    params.batch = kBatch;
    params.padding = padding;
    params.num_scales = channels <= kMaxScales ? channels : 1;
    for (int64_t c = 0; c < params.num_scales; ++c) {
      params.scales[c] = {0.4f + 0.01f * static_cast<float>(c), 0.2f + 0.02f * static_cast<float>(c)};
    }
  }

  template <typename Out>
  std::vector<Out> augmented() const {
    std::vector<Out> out(static_cast<size_t>(params.batch * params.image_size()));
    std::vector<uint8_t> scratch(static_cast<size_t>(augment_scratch_size(params)));
    // In two ranges, as two threads would.
    FASTOOD_CPU_DISPATCH(augment_images<Out>)(params, 0, 5, scratch.data(), out.data());
    FASTOOD_CPU_DISPATCH(augment_images<Out>)(params, 5, params.batch, scratch.data(), out.data());
    return out;
  }
};

// The definition of the crop, from the padded image of the paper.
uint8_t padded_pixel(const AugmentParams& p, int64_t b, int64_t c, int64_t y, int64_t x) {
  const int64_t column = p.columns[b] + (p.flip[b] ? p.width - 1 - x : x);
  const int64_t row = p.rows[b] + y;
  if (row < p.padding || row >= p.padding + p.height || column < p.padding || column >= p.padding + p.width) {
    return 0;
  }
  return p.images[p.index[b] * p.image_stride + c * p.channel_stride + (row - p.padding) * p.row_stride +
                  (column - p.padding) * p.column_stride];
}

template <typename Out>
bool same(Out got, float want) {
  const Out rounded = FromCompute<Out>::convert(want);
  return std::memcmp(&got, &rounded, sizeof(Out)) == 0;
}

template <typename Out, bool kChannelsLast>
void test_batch(Batch batch) {
  AugmentParams& p = batch.params;
  p.channels_last = kChannelsLast;
  const std::vector<Out> out = batch.augmented<Out>();
  for (int64_t b = 0; b < p.batch; ++b) {
    const Crop crop(p, b);
    Place<kChannelsLast> place(p, 0);
    for (int64_t i = 0; i < p.image_size(); ++i) {
      const Place<kChannelsLast> divided(p, static_cast<uint32_t>(i));
      expect(divided.channel == place.channel && divided.y == place.y && divided.x == place.x, "place", i);
      const uint8_t want = padded_pixel(p, b, place.channel, place.y, place.x);
      expect(crop.pixel(p, place.channel, place.y, place.x) == want, "crop", i);
      const PixelScale& scale = p.scale(place.channel);
      expect(same(out[static_cast<size_t>(b * p.image_size() + i)], normalised(want, scale.mean, scale.std)),
             kChannelsLast ? "pixel, channels last" : "pixel", i);
      place.advance(p);
    }
  }
}

}  // namespace

int main() {
  test_every_byte();
  for (const int64_t channels : {1, 2, 3, 4, 17}) {
    for (const int64_t width : {1, 15, 16, 17, 33, 65}) {
      for (const int64_t padding : {0, 2, 40}) {
        for (const bool stored_channels_last : {false, true}) {
          const Batch batch(channels, width == 16 ? 8 : 9, width, padding, stored_channels_last);
          test_batch<float, false>(batch);
          test_batch<float, true>(batch);
          test_batch<BFloat16, true>(batch);
          test_batch<Float16, false>(batch);
        }
      }
    }
  }
  return testing::report(cpu_capability_name());
}
