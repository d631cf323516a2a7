// Counts of each sample in resampled sets, on CUDA: the CPU's numbers (random.h), by integer atomics in any order.
//
// Bytes of a replicate of N samples: 4 N written, for "multinomial" cleared before and added to, 12 N, mostly in the level-2
// cache. Operations: a block of Philox, some 60 multiplications and additions, for two samples.
#include "../common/grid_limit.h"
#include "cuda.h"

namespace fastood::detection_metrics {
namespace {

constexpr int kDrawThreads = 256;
constexpr int kSubsetThreads = 1024;
constexpr int64_t kMaxDrawBlocks = 4096;

__device__ __forceinline__ RandomStream replicate_of(const CountsParams& p, int64_t r) {
  return {p.first.seed, p.first.replicate + static_cast<uint32_t>(r), p.first.stream};
}

template <Resampling kScheme>
__global__ void __launch_bounds__(kDrawThreads) draws_kernel(const __grid_constant__ CountsParams p) {
  const int64_t pairs = (p.count + 1) / 2;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kDrawThreads + threadIdx.x; i < p.num_replicates * pairs;
       i += static_cast<int64_t>(gridDim.x) * kDrawThreads) {
    const int64_t r = i / pairs;
    const int64_t j = 2 * (i % pairs);
    const RandomPair numbers = philox(replicate_of(p, r), static_cast<uint64_t>(j / 2));
    int32_t* const counts = p.counts + r * p.count;
    if constexpr (kScheme == Resampling::kMultinomial) {
      const auto count = static_cast<uint64_t>(p.count);
      atomicAdd(counts + scale_draw(numbers.first, count), 1);
      if (j + 1 < p.count) {
        atomicAdd(counts + scale_draw(numbers.second, count), 1);
      }
    } else {
      counts[j] = poisson_draw(numbers.first);
      if (j + 1 < p.count) {
        counts[j + 1] = poisson_draw(numbers.second);
      }
    }
  }
}

__device__ __forceinline__ uint64_t number_of(const RandomStream& stream, int64_t j) {
  const RandomPair numbers = philox(stream, static_cast<uint64_t>(j / 2));
  return j % 2 == 0 ? numbers.first : numbers.second;
}

// A block per replicate: digits of the largest number in the subset are narrowed down by counting.
__global__ void __launch_bounds__(kSubsetThreads) subset_kernel(const __grid_constant__ CountsParams p) {
  __shared__ unsigned long long bins[SubsetBound::kBins];
  __shared__ SubsetBound shared;
  for (int64_t r = blockIdx.x; r < p.num_replicates; r += gridDim.x) {
    const RandomStream stream = replicate_of(p, r);
    SubsetBound bound = SubsetBound::of(p.size);
    while (bound.is_open) {
      for (int bin = threadIdx.x; bin < SubsetBound::kBins; bin += kSubsetThreads) {
        bins[bin] = 0;
      }
      __syncthreads();
      for (int64_t j = threadIdx.x; j < p.count; j += kSubsetThreads) {
        const uint64_t u = number_of(stream, j);
        if (bound.in_question(u)) {
          atomicAdd(bins + bound.bin(u), 1ull);
        }
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        bound.narrow(reinterpret_cast<const int64_t*>(bins));
        shared = bound;
      }
      __syncthreads();
      bound = shared;
    }
    int32_t* const counts = p.counts + r * p.count;
    const bool takes_all = bound.missing == bound.num_in_question;
    for (int64_t j = threadIdx.x; j < p.count; j += kSubsetThreads) {
      const uint64_t u = number_of(stream, j);
      counts[j] = bound.is_smaller(u) || (takes_all && bound.in_question(u)) ? 1 : 0;
    }
    __syncthreads();
    // Ties of all 64 bits, the first by position: hardly ever. No shared memory, which the next replicate may write.
    if (threadIdx.x == 0 && !takes_all) {
      for (int64_t j = 0; j < p.count && bound.missing > 0; ++j) {
        if (bound.in_question(number_of(stream, j))) {
          counts[j] = 1;
          --bound.missing;
        }
      }
    }
  }
}

}  // namespace

cudaError_t launch_resampling_counts(const CountsParams& params, cudaStream_t stream) {
  const int64_t size = params.num_replicates * params.count;
  if (size == 0) {
    return cudaSuccess;
  }
  const int64_t pairs = params.num_replicates * ((params.count + 1) / 2);
  const unsigned blocks = grid_limit((pairs + kDrawThreads - 1) / kDrawThreads, kMaxDrawBlocks);
  switch (params.scheme) {
    case Resampling::kMultinomial: {
      const cudaError_t error = cudaMemsetAsync(params.counts, 0, static_cast<size_t>(size) * sizeof(int32_t), stream);
      if (error != cudaSuccess) {
        return error;
      }
      draws_kernel<Resampling::kMultinomial><<<blocks, kDrawThreads, 0, stream>>>(params);
      break;
    }
    case Resampling::kPoisson:
      draws_kernel<Resampling::kPoisson><<<blocks, kDrawThreads, 0, stream>>>(params);
      break;
    case Resampling::kSubset:
      subset_kernel<<<grid_limit(params.num_replicates, kMaxDrawBlocks), kSubsetThreads, 0, stream>>>(params);
      break;
  }
  return cudaGetLastError();
}

}  // namespace fastood::detection_metrics
