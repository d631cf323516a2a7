// Augmentation of images on the CPU. Compiled once per instruction set: see common/cpu_capability.h.
//
// Bytes: one read of every image drawn, one write of the results, for float32 five bytes a pixel together. Rows are copied
// between margins of zeros, backwards where mirrored; then every crop is a row of `width` bytes from some offset on, and
// normalisation handles neither edges nor mirroring. For small images of a pool larger than the caches most of the time
// is spent loading them: they are first copied whole, which keeps more reads in flight than cropping row by row, and
// was faster than prefetching the next image.
#include "cpu.h"

#ifndef FASTOOD_CPU_CAPABILITY
#error "FASTOOD_CPU_CAPABILITY names the namespace of this copy; CMakeLists.txt sets it"
#endif

#include <algorithm>
#include <cstring>

namespace fastood::image_augment::FASTOOD_CPU_CAPABILITY {
namespace {

void copy_row(const uint8_t* __restrict from, int64_t stride, int64_t width, uint8_t* __restrict to) {
  if (stride == 1) {
    std::memcpy(to, from, static_cast<size_t>(width));
  } else if (stride == -1) {
    for (int64_t x = 0; x < width; ++x) {
      to[x] = from[-x];
    }
  } else {
    for (int64_t x = 0; x < width; ++x) {
      to[x] = from[x * stride];
    }
  }
}

// The rows y…y + count of every channel into scratch [channels, kRowsAtOnce, width + 2 padding], between its margins.
void copy_rows(const AugmentParams& p, const Crop& crop, int64_t y, int64_t count, uint8_t* scratch) {
  const int64_t pitch = p.width + 2 * p.padding;
  const int64_t stride = crop.mirrored ? -p.column_stride : p.column_stride;
  const int64_t first = crop.mirrored ? (p.width - 1) * p.column_stride : 0;
  for (int64_t c = 0; c < p.channels; ++c) {
    for (int64_t i = 0; i < count; ++i) {
      uint8_t* const to = scratch + (c * kRowsAtOnce + i) * pitch + p.padding;
      const int64_t row = y + i + crop.top;
      if (row >= 0 && row < p.height) {
        copy_row(crop.image + c * p.channel_stride + row * p.row_stride + first, stride, p.width, to);
      } else {
        std::memset(to, 0, static_cast<size_t>(p.width));
      }
    }
  }
}

template <typename Out>
void normalise_row(const uint8_t* __restrict bytes, int64_t width, const PixelScale scale, Out* __restrict out) {
#pragma omp simd
  for (int64_t x = 0; x < width; ++x) {
    out[x] = FromCompute<Out>::convert(scale(bytes[x]));
  }
}

// Three channels side by side.
template <typename Out>
void normalise_colours(const uint8_t* __restrict bytes, int64_t channel_pitch, int64_t width, const AugmentParams& p,
                       Out* __restrict out) {
  const PixelScale red = p.scale(0);
  const PixelScale green = p.scale(1);
  const PixelScale blue = p.scale(2);
#pragma omp simd
  for (int64_t x = 0; x < width; ++x) {
    out[3 * x] = FromCompute<Out>::convert(red(bytes[x]));
    out[3 * x + 1] = FromCompute<Out>::convert(green(bytes[channel_pitch + x]));
    out[3 * x + 2] = FromCompute<Out>::convert(blue(bytes[2 * channel_pitch + x]));
  }
}

template <typename Out>
void normalise_rows(const AugmentParams& p, const uint8_t* crop, int64_t y, int64_t count, Out* image) {
  const int64_t pitch = p.width + 2 * p.padding;
  const int64_t channel_pitch = kRowsAtOnce * pitch;
  if (!p.channels_last || p.channels == 1) {
    for (int64_t c = 0; c < p.channels; ++c) {
      for (int64_t i = 0; i < count; ++i) {
        normalise_row(crop + c * channel_pitch + i * pitch, p.width, p.scale(c),
                      image + (c * p.height + y + i) * p.width);
      }
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* const bytes = crop + i * pitch;
    Out* const out = image + (y + i) * p.width * p.channels;
    if (p.channels == 3) {
      normalise_colours(bytes, channel_pitch, p.width, p, out);
      continue;
    }
    for (int64_t c = 0; c < p.channels; ++c) {
      const PixelScale scale = p.scale(c);
      for (int64_t x = 0; x < p.width; ++x) {
        out[x * p.channels + c] = FromCompute<Out>::convert(scale(bytes[c * channel_pitch + x]));
      }
    }
  }
}

}  // namespace

template <typename Out>
void augment_images(const AugmentParams& p, int64_t begin, int64_t end, uint8_t* scratch, Out* out) {
  const bool staged = is_staged(p);
  uint8_t* const stage = scratch + augment_rows_size(p);
  for (int64_t b = begin; b < end; ++b) {
    Crop crop(p, b);
    if (staged) {
      std::memcpy(stage, crop.image, static_cast<size_t>(p.image_size()));
      crop.image = stage;
    }
    // Mirrored rows were copied backwards: the crop begins as far from their end as it would have ended.
    const uint8_t* const bytes = scratch + p.padding + (crop.mirrored ? -crop.left : crop.left);
    for (int64_t y = 0; y < p.height; y += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, p.height - y);
      copy_rows(p, crop, y, count, scratch);
      normalise_rows(p, bytes, y, count, out + b * p.image_size());
    }
  }
}

#define FASTOOD_INSTANTIATE(Out) \
  template void augment_images<Out>(const AugmentParams&, int64_t, int64_t, uint8_t*, Out*);
FASTOOD_INSTANTIATE(float)
FASTOOD_INSTANTIATE(BFloat16)
FASTOOD_INSTANTIATE(Float16)
#undef FASTOOD_INSTANTIATE

}  // namespace fastood::image_augment::FASTOOD_CPU_CAPABILITY
