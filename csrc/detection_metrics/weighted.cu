// Detection statistics of one pair under R weightings on CUDA.
//
// Ranks do not depend on the weights: they are found once, 20 bytes a pair of scores. A replicate then reads its weights and
// writes their running sums (a block per replicate and class), and a block per tile of positions gathers these at the ranks:
// about 40 bytes per score and replicate, most of them from the level-2 cache. No atomics: the sums have the CPU's
// order and bits.
#include <cub/block/block_scan.cuh>

#include "rank_tile.cuh"

namespace fastood::detection_metrics {
namespace {

struct RankArrays {
  int32_t* below;
  int32_t* upto;
  int32_t* first;
  int32_t* own;
  int32_t* other;

  RankArrays(int32_t* ranks, int64_t num_id, int64_t num_ood)
      : below(ranks),
        upto(ranks + num_ood),
        first(ranks + 2 * num_ood),
        own(ranks + 3 * num_ood),
        other(ranks + 3 * num_ood + num_id) {}
};

// Eight blocks to an SM leave 64 registers a thread; without a bound ptxas aims at 32 and spills.
template <typename Key>
__global__ void __launch_bounds__(kThreads, 8) ranks_kernel(const __grid_constant__ PairsParams p, RankArrays ranks) {
  __shared__ SharedTile<Key> shared;
  const ScorePair<Key> pair = pair_of<Key>(p, 0);
  const int64_t count = num_tiles(pair.size());
  for (int64_t tile = blockIdx.x; tile < count; tile += gridDim.x) {
    for_ranks(
        pair, tile, shared,
        [&](int64_t j, int32_t below, int32_t upto, int32_t first) {
          ranks.below[j] = below;
          ranks.upto[j] = upto;
          ranks.first[j] = first;
        },
        [&](int64_t i, int32_t own, int32_t other) {
          ranks.own[i] = own;
          ranks.other[i] = other;
        });
  }
}

constexpr int kScanThreads = 256;
constexpr int kScanItems = 8;

// Running sums of the weights of each replicate, from 0, and their total, or -1 where one is negative or the total too large.
__global__ void __launch_bounds__(kScanThreads)
    running_sums_kernel(const int32_t* __restrict__ weights, int64_t count, int64_t num_replicates,
                        int32_t* __restrict__ sums,      // [R, count + 1]
                        int64_t* __restrict__ totals) {  // every other
  using Scan = cub::BlockScan<int64_t, kScanThreads>;
  __shared__ typename Scan::TempStorage shared;
  for (int64_t r = blockIdx.x; r < num_replicates; r += gridDim.x) {
    int64_t total = 0;
    int any_negative = 0;
    for (int64_t base = 0; base < count; base += kScanThreads * kScanItems) {
      int64_t items[kScanItems];
      const int64_t begin = base + threadIdx.x * kScanItems;
#pragma unroll
      for (int k = 0; k < kScanItems; ++k) {
        const int64_t i = begin + k;
        const int32_t weight = i >= count ? 0 : weights == nullptr ? 1 : weights[r * count + i];
        any_negative |= weight < 0 ? 1 : 0;
        items[k] = weight;
      }
      int64_t of_chunk;
      Scan(shared).InclusiveSum(items, items, of_chunk);
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kScanItems; ++k) {
        if (begin + k < count) {
          sums[r * (count + 1) + begin + k + 1] = static_cast<int32_t>(total + items[k]);
        }
      }
      total += of_chunk;
    }
    any_negative = __syncthreads_or(any_negative);
    if (threadIdx.x == 0) {
      sums[r * (count + 1)] = 0;
      totals[2 * r] = any_negative != 0 || total > kMaxCount ? -1 : total;
    }
  }
}

// Running sums of one replicate, and whether it has statistics.
struct Replicate {
  WeightBefore id;
  WeightBefore ood;
  __device__ bool has_both() const { return id.total > 0 && ood.total > 0; }
};

__device__ __forceinline__ Replicate replicate_of(const WeightedParams& w, int64_t r, int64_t num_id, int64_t num_ood) {
  return {{w.totals[2 * r], w.id_before + r * (num_id + 1)}, {w.totals[2 * r + 1], w.ood_before + r * (num_ood + 1)}};
}

// Three blocks on a multiprocessor: 80 registers a thread; without it nvcc 13.0 aims at 72 on sm_120, and spills.
template <typename Key>
__global__ void __launch_bounds__(kThreads, 3)
    weighted_tiles_kernel(const __grid_constant__ PairsParams p, const __grid_constant__ WeightedParams w,
                          RankArrays ranks, int64_t count, RankSums* __restrict__ tiles) {  // [R, count]
  __shared__ SharedSums shared;
  const ScorePair<Key> pair = pair_of<Key>(p, 0);
  const int64_t num_blocks = w.num_replicates * count;
  for (int64_t block = blockIdx.x; block < num_blocks; block += gridDim.x) {
    const Replicate at = replicate_of(w, block / count, p.id_columns, p.ood_columns);
    if (!at.has_both() || !pair.has_both()) {  // the same for all threads
      continue;
    }
    const auto num_id = static_cast<int32_t>(at.id.total);
    const auto num_ood = static_cast<int32_t>(at.ood.total);
    const int64_t begin = block % count * kTile + threadIdx.x;
    const int64_t end = (block % count + 1) * kTile;
    LaneSums own;
    for (int64_t j = begin; j < end && j < pair.num_ood; j += kThreads) {
      add_ood(own, at.ood.sums[j + 1] - at.ood.sums[j], at.id.sums[ranks.below[j]], at.id.sums[ranks.upto[j]],
              at.ood.sums[ranks.first[j]], num_id, num_ood);
    }
    for (int64_t i = begin; i < end && i < pair.num_id; i += kThreads) {
      own.aupr_id +=
          precision_term(at.id.sums[i + 1] - at.id.sums[i], at.id.sums[ranks.own[i]], at.ood.sums[ranks.other[i]]);
    }
    const RankSums found = fold(own, shared);
    if (threadIdx.x == 0) {
      tiles[block] = found;
    }
    __syncthreads();
  }
}

template <typename Key>
__global__ void __launch_bounds__(kThreads)
    weighted_areas_kernel(const __grid_constant__ PairsParams p, const __grid_constant__ WeightedParams w,
                          int64_t count, const RankSums* __restrict__ tiles, int64_t columns,
                          double* __restrict__ statistics) {  // [R, columns]
  __shared__ SharedSums shared;
  const bool has_pair = pair_of<Key>(p, 0).has_both();
  for (int64_t r = blockIdx.x; r < w.num_replicates; r += gridDim.x) {
    const Replicate at = replicate_of(w, r, p.id_columns, p.ood_columns);
    const bool has_statistics = has_pair && at.has_both();
    const RankSums sums = add_tiles(tiles + r * count, has_statistics ? count : 0, shared);
    double* const out = statistics + r * columns;
    if (threadIdx.x == 0 && has_statistics) {
      write_areas(sums, at.id.total, at.ood.total, out);
    }
    if (threadIdx.x < kRates && !has_statistics) {
      out[threadIdx.x] = NAN;
    }
    __syncthreads();
  }
}

template <typename Key>
__global__ void __launch_bounds__(kThreads, 4)
    weighted_rates_kernel(const __grid_constant__ PairsParams p, const __grid_constant__ WeightedParams w,
                          const __grid_constant__ Rates rates, double* __restrict__ statistics) {
  const ScorePair<Key> pair = pair_of<Key>(p, 0);
  const int64_t size = w.num_replicates * rates.count;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t r = i / rates.count;
    const int64_t rate = i % rates.count;
    const Replicate at = replicate_of(w, r, p.id_columns, p.ood_columns);
    double* const out = statistics + r * num_statistics(rates.num_rates);
    if (pair.has_both() && at.has_both()) {
      write_rates(pair, at.id, at.ood, rates.values[rate], rates.first + rate, rates.num_rates, out);
    } else {
      write_no_rates(rates.first + rate, rates.num_rates, out);
    }
  }
}

template <typename Key>
cudaError_t launch_areas(const PairsParams& p, const WeightedParams& w, int64_t num_rates, RankSums* tiles,
                         double* statistics, cudaStream_t stream) {
  const RankArrays ranks(w.ranks, p.id_columns, p.ood_columns);
  if (p.max_tiles() > 0) {
    // Rows that do not ascend leave ranks unwritten, by which the tiles read.
    const auto rank_bytes = static_cast<size_t>(3 * p.ood_columns + 2 * p.id_columns) * sizeof(int32_t);
    const cudaError_t error = cudaMemsetAsync(w.ranks, 0, rank_bytes, stream);
    if (error != cudaSuccess) {
      return error;
    }
    ranks_kernel<Key><<<blocks_of(p.max_tiles()), kThreads, 0, stream>>>(p, ranks);
  }
  const unsigned replicates = blocks_of(w.num_replicates);
  running_sums_kernel<<<replicates, kScanThreads, 0, stream>>>(w.id_weight, p.id_columns, w.num_replicates, w.id_before,
                                                               w.totals);
  running_sums_kernel<<<replicates, kScanThreads, 0, stream>>>(w.ood_weight, p.ood_columns, w.num_replicates,
                                                               w.ood_before, w.totals + 1);
  const int64_t count = num_tiles(p.id_columns < p.ood_columns ? p.ood_columns : p.id_columns);
  if (count > 0) {
    weighted_tiles_kernel<Key><<<blocks_of(w.num_replicates * count), kThreads, 0, stream>>>(p, w, ranks, count, tiles);
  }
  weighted_areas_kernel<Key>
      <<<replicates, kThreads, 0, stream>>>(p, w, count, tiles, num_statistics(num_rates), statistics);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_weighted_areas(const PairsParams& pair, const WeightedParams& params, int64_t num_rates,
                                  RankSums* tiles, double* statistics, cudaStream_t stream) {
  if (params.num_replicates == 0) {
    return cudaSuccess;
  }
  return pair.wide ? launch_areas<int64_t>(pair, params, num_rates, tiles, statistics, stream)
                   : launch_areas<int32_t>(pair, params, num_rates, tiles, statistics, stream);
}

cudaError_t launch_weighted_rates(const PairsParams& pair, const WeightedParams& params, const Rates& rates,
                                  double* statistics, cudaStream_t stream) {
  if (params.num_replicates * rates.count == 0) {
    return cudaSuccess;
  }
  const unsigned blocks = blocks_of((params.num_replicates * rates.count + kThreads - 1) / kThreads);
  if (pair.wide) {
    weighted_rates_kernel<int64_t><<<blocks, kThreads, 0, stream>>>(pair, params, rates, statistics);
  } else {
    weighted_rates_kernel<int32_t><<<blocks, kThreads, 0, stream>>>(pair, params, rates, statistics);
  }
  return cudaGetLastError();
}

}  // namespace fastood::detection_metrics
