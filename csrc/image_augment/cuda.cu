// Augmentation of images on CUDA: the CPU's numbers (math.h), bit for bit.
//
// Bytes: one read of every image drawn, one write of the results, for float32 five bytes a pixel together, 15 KiB for
// an RGB image of 32 x 32. A thread computes kRun adjacent results and stores them at once: channel, row and column of
// the first result are found by division, and of the others by increments. A run reads single bytes of one or two cache
// lines, from the level-1 cache after the first byte.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

#include "../common/grid_limit.h"
#include "../common/in_range.h"
#include "cuda.h"
#include "place.h"

namespace fastood::image_augment {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;
constexpr int kRun = 4;

template <typename Out>
__device__ __forceinline__ Out rounded(float value);
template <>
__device__ __forceinline__ float rounded<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 rounded<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ __half rounded<__half>(float value) {
  return __float2half_rn(value);
}

template <typename Out>
struct alignas(kRun * sizeof(Out)) Run {
  Out values[kRun];
};

template <typename Out, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    augment_kernel(const __grid_constant__ AugmentParams p, Out* __restrict__ out) {
  const int64_t image_size = p.image_size();
  const int64_t num_runs = (image_size + kRun - 1) / kRun;
  // Then every run begins at a multiple of its size.
  const bool aligned = image_size % kRun == 0;
  for (int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; j < p.batch * num_runs;
       j += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t b = j / num_runs;
    const int64_t first = (j - b * num_runs) * kRun;
    // A check of the indices on the host would synchronise with the device. An image or a crop that does not exist is
    // NaN, and nothing is read.
    const bool exists = in_range(p.index[b], p.num_images) && in_range(p.rows[b], 2 * p.padding + 1) &&
                        in_range(p.columns[b], 2 * p.padding + 1);
    const Crop crop = exists ? Crop(p, b) : Crop{};
    Place<kChannelsLast> place(p, static_cast<uint32_t>(first));
    const int64_t left = image_size - first;
    const int count = left < kRun ? static_cast<int>(left) : kRun;
    Run<Out> run;
    FASTOOD_UNROLL
    for (int i = 0; i < kRun; ++i) {
      const bool wanted = exists && i < count;
      const uint8_t byte = wanted ? crop.pixel(p, place.channel, place.y, place.x) : uint8_t{0};
      const float value = p.scale(wanted ? place.channel : 0)(byte);
      run.values[i] = rounded<Out>(exists ? value : NAN);
      place.advance(p);
    }
    Out* const to = out + b * image_size + first;
    if (aligned) {
      *reinterpret_cast<Run<Out>*>(to) = run;
    } else {
      FASTOOD_UNROLL
      for (int i = 0; i < kRun; ++i) {
        if (i < count) {
          to[i] = run.values[i];
        }
      }
    }
  }
}

template <typename Out>
void launch(const AugmentParams& p, unsigned blocks, void* out, cudaStream_t stream) {
  if (p.channels_last) {
    augment_kernel<Out, true><<<blocks, kThreads, 0, stream>>>(p, static_cast<Out*>(out));
  } else {
    augment_kernel<Out, false><<<blocks, kThreads, 0, stream>>>(p, static_cast<Out*>(out));
  }
}

}  // namespace

cudaError_t launch_augment_images(const AugmentParams& params, PixelType type, void* out, cudaStream_t stream) {
  const int64_t num_runs = params.batch * ((params.image_size() + kRun - 1) / kRun);
  if (num_runs == 0) {
    return cudaSuccess;
  }
  const unsigned blocks = grid_limit((num_runs + kThreads - 1) / kThreads, kMaxBlocks);
  switch (type) {
    case PixelType::kFloat32:
      launch<float>(params, blocks, out, stream);
      break;
    case PixelType::kBFloat16:
      launch<__nv_bfloat16>(params, blocks, out, stream);
      break;
    case PixelType::kFloat16:
      launch<__half>(params, blocks, out, stream);
      break;
  }
  return cudaGetLastError();
}

}  // namespace fastood::image_augment
