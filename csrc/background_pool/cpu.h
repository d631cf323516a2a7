// Kernels of the background pool for the CPU: single-threaded, torch-free, one copy per instruction set.
#pragma once

#include <cstdint>

#include "../common/cpu_capability.h"
#include "math.h"

namespace fastood::background_pool {

struct PoolPower {
  PowerKind kind;
  float epsilon;
};

// Kernels over gathered examples run on whole vectors: callers round counts up to this and pad the arrays.
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

#define FASTOOD_CPU_KERNELS "../background_pool/cpu_kernels.h"
#include "../common/cpu_copies.h"

}  // namespace fastood::background_pool
