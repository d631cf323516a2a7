// Checks of indices, for host and device.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace fastood {

// Whether 0 <= index < count, by one comparison.
FASTOOD_HD bool in_range(int64_t index, int64_t count) {
  return static_cast<uint64_t>(index) < static_cast<uint64_t>(count);
}

// An index that may be read by: itself, or 0. A CUDA op cannot raise for a value without waiting for the device. It reads
// an element that exists, and marks the result.
FASTOOD_HD int64_t readable_index(int64_t index, int64_t count) {
  return in_range(index, count) ? index : 0;
}

}  // namespace fastood
