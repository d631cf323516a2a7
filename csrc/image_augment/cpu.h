// Augmentation of images on the CPU: single-threaded, torch-free, one copy per instruction set.
#pragma once

#include <cstdint>

#include "../common/cpu_capability.h"
#include "../common/reduced_float.h"
#include "math.h"

namespace fastood {

// Rows of all channels that are cropped, then normalised: a copy is out of the store buffer before it is read again.
constexpr int64_t kRowsAtOnce = 8;

// Zeroed bytes that augment_images works in.
inline int64_t augment_scratch_size(const AugmentParams& p) {
  return p.channels * kRowsAtOnce * (p.width + 2 * p.padding);
}

namespace baseline {
#include "cpu_kernels.h"
}
#if defined(FASTOOD_HAVE_X86_KERNELS)
namespace avx2 {
#include "cpu_kernels.h"
}
namespace avx512 {
#include "cpu_kernels.h"
}
#endif

}  // namespace fastood
