// Shared by the CUDA kernels over rows of logits: element types, and groups of threads that share a row.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "grid_limit.h"
#include "logit_type.h"

namespace fastood {

// A multiple of every group width. The kernels take 31 to 64 registers a thread (ptxas, sm_90): four to eight blocks on an SM.
constexpr int kThreads = 256;
// Blocks beyond a few waves of the largest GPU only wait; rows are taken in a grid-stride loop.
constexpr int64_t kMaxBlocks = 4096;

template <typename T>
__device__ __forceinline__ T load(const T* pointer) {
  return *pointer;
}
__device__ __forceinline__ float load(const __half* pointer) {
  return __half2float(*pointer);
}
__device__ __forceinline__ float load(const __nv_bfloat16* pointer) {
  return __bfloat162float(*pointer);
}

template <typename T>
__device__ __forceinline__ void store(T* pointer, T value) {
  *pointer = value;
}
__device__ __forceinline__ void store(__half* pointer, float value) {
  *pointer = __float2half_rn(value);
}
__device__ __forceinline__ void store(__nv_bfloat16* pointer, float value) {
  *pointer = __float2bfloat16_rn(value);
}

struct Add {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

struct Min {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

// Threads that share a row. kWidth <= 32: neighbouring lanes, by shuffles. kWidth == kThreads: the block, through
// shared memory. Every thread of the group gets the result; the order is fixed.
template <int kWidth>
struct Group {
  static constexpr int kLanes = kWidth < 32 ? kWidth : 32;

  template <typename T, typename Op>
  static __device__ __forceinline__ T reduce(T value, Op op, T* shared) {
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      value = op(value, __shfl_xor_sync(0xffffffffu, value, offset));
    }
    if constexpr (kWidth > 32) {
      constexpr int kWarps = kWidth / 32;
      __syncthreads();  // the previous reduction may still read shared
      if (threadIdx.x % 32 == 0) {
        shared[threadIdx.x / 32] = value;
      }
      __syncthreads();
      value = shared[0];
#pragma unroll
      for (int warp = 1; warp < kWarps; ++warp) {
        value = op(value, shared[warp]);
      }
    }
    return value;
  }
};

template <int kWidth>
unsigned num_blocks(int64_t num_rows) {
  constexpr int64_t kRowsPerBlock = kThreads / kWidth;
  return grid_limit((num_rows + kRowsPerBlock - 1) / kRowsPerBlock, kMaxBlocks);
}

// Calls launch with the group width for K classes as an integral constant.
template <typename Launch>
void with_group_width(int64_t num_classes, const Launch& launch) {
  if (num_classes <= 16) {
    launch(std::integral_constant<int, 4>());
  } else if (num_classes <= 128) {
    launch(std::integral_constant<int, 16>());
  } else if (num_classes <= 1024) {
    launch(std::integral_constant<int, 32>());
  } else {
    launch(std::integral_constant<int, kThreads>());
  }
}

// Calls body.operator()<Logit>() with the device element type.
template <typename Body>
cudaError_t with_logit_type(LogitType type, const Body& body) {
  switch (type) {
    case LogitType::kFloat64:
      return body.template operator()<double>();
    case LogitType::kFloat32:
      return body.template operator()<float>();
    case LogitType::kBFloat16:
      return body.template operator()<__nv_bfloat16>();
    case LogitType::kFloat16:
      return body.template operator()<__half>();
  }
  return cudaErrorInvalidValue;
}

}  // namespace fastood
