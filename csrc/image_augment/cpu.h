// Augmentation of images on the CPU: single-threaded, torch-free, one copy per instruction set.
#pragma once

#include <cstdint>

#include "../common/cpu_capability.h"
#include "../common/reduced_float.h"
#include "math.h"

namespace fastood::image_augment {

// Rows of all channels that are cropped, then normalised: a copy is out of the store buffer before it is read again.
constexpr int64_t kRowsAtOnce = 8;

// Bytes of an image that is copied whole before it is cropped.
constexpr int64_t kMaxStaged = 1 << 14;

// Whether an image is: its bytes are adjacent, in any order, and fit into half a level-1 cache.
inline bool is_staged(const AugmentParams& p) {
  const int64_t last =
      (p.channels - 1) * p.channel_stride + (p.height - 1) * p.row_stride + (p.width - 1) * p.column_stride;
  return last + 1 == p.image_size() && p.image_size() <= kMaxStaged;
}

inline int64_t augment_rows_size(const AugmentParams& p) {
  return p.channels * kRowsAtOnce * (p.width + 2 * p.padding);
}

// Zeroed bytes that augment_images works in: rows between margins, then a whole image.
inline int64_t augment_scratch_size(const AugmentParams& p) {
  return augment_rows_size(p) + (is_staged(p) ? p.image_size() : 0);
}

#define FASTOOD_CPU_KERNELS "../image_augment/cpu_kernels.h"
#include "../common/cpu_copies.h"

}  // namespace fastood::image_augment
