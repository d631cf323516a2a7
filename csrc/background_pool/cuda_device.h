// Shared by the pool's kernels: exact reductions over a warp, and dispatch on the power.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda.h"

namespace fastood::background_pool {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

// Sums of multiples of a quantum: exact in any order.
__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, offset);
  }
  return value;
}

__device__ __forceinline__ double warp_max(double value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const double other = __shfl_xor_sync(kFullWarp, value, offset);
    value = value < other ? other : value;
  }
  return value;
}

// Calls launch(std::integral_constant<PowerKind>): each kernel holds one way of taking the power.
template <typename Launch>
void with_power(PowerKind power, const Launch& launch) {
  switch (power) {
    case PowerKind::kZero:
      return launch(std::integral_constant<PowerKind, PowerKind::kZero>());
    case PowerKind::kHalf:
      return launch(std::integral_constant<PowerKind, PowerKind::kHalf>());
    case PowerKind::kOne:
      return launch(std::integral_constant<PowerKind, PowerKind::kOne>());
    case PowerKind::kGeneral:
      return launch(std::integral_constant<PowerKind, PowerKind::kGeneral>());
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// What a pass over the pool does before it sums: nothing, or a step on undrawn examples.
enum class PoolPass { kBuild, kStep };

// Sums of the whole pool (pass.cu), unless there is a plan and it is not valid.
cudaError_t launch_pool_pass(PoolPass pass, const PoolParams& pool, const PoolPlan* plan, PoolTotals* partials,
                             cudaStream_t stream);

// Chooses quanta for the current weights and builds all sums by them, if `plan` is valid, which the device decides:
// four launches, and one more for each level above the second.
cudaError_t launch_pool_rescale(const PoolParams& pool, const PoolPlan* plan, PoolTotals* partials,
                                cudaStream_t stream);

}  // namespace fastood::background_pool
