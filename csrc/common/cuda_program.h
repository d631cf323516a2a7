// CUDA kernels as programs over a block (or a warp) of threads, in steps that every thread takes.
//
// `each` is the thread's own share, and a program's registers are its State. Control flow is the same for all threads of a
// block (of a warp, in a warp's program).
#pragma once

#include <cstdint>

#include "host_device.h"

namespace fastood {

constexpr int kLanes = 32;

FASTOOD_HD int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

FASTOOD_HD int lowest_bit(unsigned bits) {
#if defined(__CUDA_ARCH__)
  return __ffs(static_cast<int>(bits)) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

#if defined(__CUDACC__)
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename State>
class CudaBlock {
 public:
  template <typename Body>
  __device__ __forceinline__ void each(const Body& body) {
    body(static_cast<int>(threadIdx.x), state_);
  }

  // Orders writes to memory before reads by other threads of the block.
  __device__ __forceinline__ void barrier() { __syncthreads(); }

  // The array `values` of one lane, to all lanes of its warp.
  template <typename T, int kSize>
  __device__ __forceinline__ void broadcast(T (State::*values)[kSize], int lane) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      (state_.*values)[i] = __shfl_sync(kAllLanes, (state_.*values)[i], lane);
    }
  }

  // Each entry of `values` becomes its sum over the warp, on all lanes.
  template <typename T, int kSize>
  __device__ __forceinline__ void sum_lanes(T (State::*values)[kSize]) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
#pragma unroll
      for (int offset = kLanes / 2; offset > 0; offset /= 2) {
        (state_.*values)[i] += __shfl_xor_sync(kAllLanes, (state_.*values)[i], offset);
      }
    }
  }

 private:
  State state_;
};

// One warp. After `each` the writes of a lane are visible to the others.
template <typename State>
class CudaWarp {
 public:
  template <typename Body>
  __device__ __forceinline__ void each(const Body& body) {
    body(static_cast<int>(threadIdx.x % kLanes), state_);
    __syncwarp();
  }

  template <typename Predicate>
  __device__ __forceinline__ unsigned ballot(const Predicate& predicate) {
    return __ballot_sync(kAllLanes, predicate(static_cast<int>(threadIdx.x % kLanes), state_));
  }

  // op over all lanes' values, on all lanes; the order is fixed.
  template <typename Value, typename Op>
  __device__ __forceinline__ auto reduce(const Value& value, const Op& op) {
    auto result = value(static_cast<int>(threadIdx.x % kLanes), state_);
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      result = op(result, __shfl_xor_sync(kAllLanes, result, offset));
    }
    return result;
  }

 private:
  State state_;
};
#endif

}  // namespace fastood
