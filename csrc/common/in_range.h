// Checks of indices, for host and device.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace fastood {

// Whether 0 <= index < count, by one comparison.
FASTOOD_HD bool in_range(int64_t index, int64_t count) {
  return static_cast<uint64_t>(index) < static_cast<uint64_t>(count);
}

// The index, or 0 if it is out of range. A CUDA op cannot raise an error for a value without waiting for the device: it
// reads an element that exists, and marks the result.
FASTOOD_HD int64_t readable_index(int64_t index, int64_t count) {
  return in_range(index, count) ? index : 0;
}

}  // namespace fastood
