// Keys of scores on CUDA, sorted by CUB. No call synchronises with the device: DeviceSegmentedSort would.
//
// Bytes of a float32 score: 8 to make its key; then a radix sort of 8 bits a pass, one kernel over a long row (8 bytes for
// each of four passes and 4 for the histograms: 36) or one block per short row. Keys of 16-bit scores differ in their upper
// bits alone, which halves the passes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_segmented_radix_sort.cuh>

#include "../common/grid_limit.h"
#include "cuda.h"

namespace fastood::detection_metrics {
namespace {

constexpr int kKeyThreads = 256;
constexpr int64_t kMaxKeyBlocks = 4096;
// From here on a row fills the GPU by itself; a block per row would leave most of it idle.
constexpr int64_t kLongRow = 1 << 18;

__device__ __forceinline__ float to_score(float score) {
  return score;
}
__device__ __forceinline__ double to_score(double score) {
  return score;
}
__device__ __forceinline__ float to_score(__nv_bfloat16 score) {
  return __bfloat162float(score);
}
__device__ __forceinline__ float to_score(__half score) {
  return __half2float(score);
}

template <typename Score, typename Key>
__global__ void __launch_bounds__(kKeyThreads) keys_kernel(const __grid_constant__ SortParams p) {
  const int64_t size = p.num_rows * p.num_columns;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kKeyThreads + threadIdx.x; i < size;
       i += static_cast<int64_t>(gridDim.x) * kKeyThreads) {
    const bool is_score = p.counts == nullptr || i % p.num_columns < p.counts[i / p.num_columns];
    const Key key = key_of(to_score(static_cast<const Score*>(p.scores)[i]));
    static_cast<Key*>(p.unsorted)[i] = is_score ? key : kNanKey<Key>;
  }
}

// Bits of a key below which those of one sign agree.
int first_bit(LogitType type) {
  switch (type) {
    case LogitType::kBFloat16:
      return 16;
    case LogitType::kFloat16:
      return 13;
    default:
      return 0;
  }
}

struct RowOffset {
  int64_t columns;
  __host__ __device__ int64_t operator()(int64_t row) const { return row * columns; }
};

// Both calls of CUB: the query for the size of the scratch (work == null), and the sort.
template <typename Key>
cudaError_t sort_rows(const SortParams& p, void* work, size_t* work_bytes, cudaStream_t stream) {
  const int begin_bit = first_bit(p.type);
  constexpr int kEndBit = 8 * sizeof(Key);
  const Key* const from = static_cast<const Key*>(p.unsorted);
  Key* const to = static_cast<Key*>(p.keys);
  if (p.num_rows == 1 || p.num_columns >= kLongRow) {
    const int64_t num_rows = work == nullptr ? 1 : p.num_rows;
    for (int64_t row = 0; row < num_rows; ++row) {
      const int64_t offset = row * p.num_columns;
      const cudaError_t error = cub::DeviceRadixSort::SortKeys(work, *work_bytes, from + offset, to + offset,
                                                               p.num_columns, begin_bit, kEndBit, stream);
      if (error != cudaSuccess) {
        return error;
      }
    }
    return cudaSuccess;
  }
  // CUB counts the keys of all segments in an int.
  const int64_t rows_at_once = kMaxCount / p.num_columns;
  const auto offsets =
      thrust::make_transform_iterator(thrust::make_counting_iterator(int64_t{0}), RowOffset{p.num_columns});
  for (int64_t row = 0; row < p.num_rows; row += rows_at_once) {
    const int64_t rows = p.num_rows - row < rows_at_once ? p.num_rows - row : rows_at_once;
    const int64_t offset = row * p.num_columns;
    const cudaError_t error = cub::DeviceSegmentedRadixSort::SortKeys(
        work, *work_bytes, from + offset, to + offset, static_cast<int>(rows * p.num_columns), static_cast<int>(rows),
        offsets, offsets + 1, begin_bit, kEndBit, stream);
    // The first group is the largest: its scratch serves all.
    if (error != cudaSuccess || work == nullptr) {
      return error;
    }
  }
  return cudaSuccess;
}

cudaError_t sort_rows(const SortParams& p, void* work, size_t* work_bytes, cudaStream_t stream) {
  return p.type == LogitType::kFloat64 ? sort_rows<int64_t>(p, work, work_bytes, stream)
                                       : sort_rows<int32_t>(p, work, work_bytes, stream);
}

}  // namespace

cudaError_t sort_scores_work_bytes(const SortParams& params, size_t* work_bytes) {
  *work_bytes = 0;
  return params.num_rows * params.num_columns == 0 ? cudaSuccess : sort_rows(params, nullptr, work_bytes, nullptr);
}

cudaError_t launch_sort_scores(const SortParams& params, cudaStream_t stream) {
  const int64_t size = params.num_rows * params.num_columns;
  if (size == 0) {
    return cudaSuccess;
  }
  const unsigned blocks = grid_limit((size + kKeyThreads - 1) / kKeyThreads, kMaxKeyBlocks);
  switch (params.type) {
    case LogitType::kFloat64:
      keys_kernel<double, int64_t><<<blocks, kKeyThreads, 0, stream>>>(params);
      break;
    case LogitType::kFloat32:
      keys_kernel<float, int32_t><<<blocks, kKeyThreads, 0, stream>>>(params);
      break;
    case LogitType::kBFloat16:
      keys_kernel<__nv_bfloat16, int32_t><<<blocks, kKeyThreads, 0, stream>>>(params);
      break;
    case LogitType::kFloat16:
      keys_kernel<__half, int32_t><<<blocks, kKeyThreads, 0, stream>>>(params);
      break;
  }
  const cudaError_t error = cudaGetLastError();
  size_t work_bytes = params.work_bytes;
  return error == cudaSuccess ? sort_rows(params, params.work, &work_bytes, stream) : error;
}

}  // namespace fastood::detection_metrics
