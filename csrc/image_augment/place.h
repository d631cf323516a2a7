// Positions of the results of an image in memory order, for kernels that iterate over them.
#pragma once

#include "math.h"

namespace fastood::image_augment {

// A position in an augmented image, advanced in memory order.
template <bool kChannelsLast>
struct Place {
  uint32_t channel;
  uint32_t y;
  uint32_t x;

  FASTOOD_HD Place(const AugmentParams& p, uint32_t i) {
    const auto width = static_cast<uint32_t>(p.width);
    if constexpr (kChannelsLast) {
      const auto channels = static_cast<uint32_t>(p.channels);
      channel = i % channels;
      x = i / channels % width;
      y = i / channels / width;
    } else {
      const auto height = static_cast<uint32_t>(p.height);
      x = i % width;
      y = i / width % height;
      channel = i / width / height;
    }
  }

  FASTOOD_HD void advance(const AugmentParams& p) {
    if constexpr (kChannelsLast) {
      if (++channel == p.channels) {
        channel = 0;
        if (++x == p.width) {
          x = 0;
          ++y;
        }
      }
    } else if (++x == p.width) {
      x = 0;
      if (++y == p.height) {
        y = 0;
        ++channel;
      }
    }
  }
};

}  // namespace fastood::image_augment
