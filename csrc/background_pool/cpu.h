// Kernels of the background pool for the CPU: single-threaded, torch-free, one copy per instruction set.
#pragma once

#include <cstdint>

#include "../common/cpu_capability.h"
#include "math.h"

namespace fastood {

struct PoolPower {
  PowerKind kind;
  float epsilon;
};

// Kernels over gathered examples run on whole vectors: callers round counts up to this and pad what they gather.
constexpr int64_t kLanes = 16;
FASTOOD_HD int64_t whole_vectors(int64_t count) {
  return (count + kLanes - 1) / kLanes * kLanes;
}

// magic_of each quantum.
struct PoolMagic {
  double mass;
  double weight;
  double square;
};

struct PoolTotals {
  double mass;
  double weight;
  double square;
  double largest;  // mass
};

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
