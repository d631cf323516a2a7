// Detection statistics of pairs of sorted rows on CUDA (math.h has the formulas).
//
// Traffic: one read of the keys of each pair, 4 or 8 bytes each, which is the floor; a tile of 2048 scores adds 32 bytes. A
// block per tile of merged order, whose ends it finds by bisection (merge path); then a block per pair adds its tiles, and a
// thread per pair and rate finds FPR and threshold by bisection.
// Integer sums, and float64 sums in the CPU's order: the CPU's bits.
#include "rank_tile.cuh"

namespace fastood::detection_metrics {
namespace {

template <typename Key>
__global__ void __launch_bounds__(kThreads) tiles_kernel(const __grid_constant__ PairsParams p, int64_t max_tiles,
                                                         RankSums* __restrict__ tiles) {  // [num_pairs, max_tiles]
  __shared__ SharedTile<Key> shared;
  __shared__ SharedSums sums;
  const int64_t num_blocks = p.num_pairs * max_tiles;
  for (int64_t block = blockIdx.x; block < num_blocks; block += gridDim.x) {
    const ScorePair<Key> pair = pair_of<Key>(p, block / max_tiles);
    const int64_t tile = block % max_tiles;
    if (tile < num_tiles(pair.size())) {  // the same for all threads
      const auto num_id = static_cast<int32_t>(pair.num_id);
      const auto num_ood = static_cast<int32_t>(pair.num_ood);
      LaneSums own;
      for_ranks(
          pair, tile, shared,
          [&](int64_t, int32_t below, int32_t upto, int32_t first) {
            add_ood(own, 1, below, upto, first, num_id, num_ood);
          },
          [&](int64_t, int32_t of_id, int32_t of_ood) { own.aupr_id += precision_term(1, of_id, of_ood); });
      const RankSums found = fold(own, sums);
      if (threadIdx.x == 0) {
        tiles[block] = found;
      }
    }
  }
}

template <typename Key>
__global__ void __launch_bounds__(kThreads) areas_kernel(const __grid_constant__ PairsParams p, int64_t max_tiles,
                                                         const RankSums* __restrict__ tiles,  // [num_pairs, max_tiles]
                                                         int64_t columns,
                                                         double* __restrict__ statistics) {  // [num_pairs, columns]
  __shared__ SharedSums shared;
  for (int64_t index = blockIdx.x; index < p.num_pairs; index += gridDim.x) {
    const ScorePair<Key> pair = pair_of<Key>(p, index);
    const RankSums sums = add_tiles(tiles + index * max_tiles, num_tiles(pair.size()), shared);
    double* const out = statistics + index * columns;
    if (threadIdx.x == 0 && pair.has_both()) {
      write_areas(sums, pair.num_id, pair.num_ood, out);
    }
    if (threadIdx.x < kRates && !pair.has_both()) {
      out[threadIdx.x] = NAN;
    }
    __syncthreads();
  }
}

template <typename Key>
__global__ void __launch_bounds__(kThreads)
    rates_kernel(const __grid_constant__ PairsParams p, const __grid_constant__ Rates rates,
                 double* __restrict__ statistics) {
  const int64_t size = p.num_pairs * rates.count;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t index = i / rates.count;
    const int64_t rate = i % rates.count;
    const ScorePair<Key> pair = pair_of<Key>(p, index);
    double* const out = statistics + index * num_statistics(rates.num_rates);
    if (pair.has_both()) {
      write_rates(pair, CountBefore{pair.num_id}, CountBefore{pair.num_ood}, rates.values[rate], rates.first + rate,
                  rates.num_rates, out);
    } else {
      write_no_rates(rates.first + rate, rates.num_rates, out);
    }
  }
}

template <typename Key>
cudaError_t launch_areas(const PairsParams& p, int64_t num_rates, RankSums* tiles, double* statistics,
                         cudaStream_t stream) {
  const int64_t max_tiles = p.max_tiles();
  if (p.num_pairs * max_tiles > 0) {
    tiles_kernel<Key><<<blocks_of(p.num_pairs * max_tiles), kThreads, 0, stream>>>(p, max_tiles, tiles);
  }
  areas_kernel<Key>
      <<<blocks_of(p.num_pairs), kThreads, 0, stream>>>(p, max_tiles, tiles, num_statistics(num_rates), statistics);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_ranking_areas(const PairsParams& params, int64_t num_rates, RankSums* tiles, double* statistics,
                                 cudaStream_t stream) {
  if (params.num_pairs == 0) {
    return cudaSuccess;
  }
  return params.wide ? launch_areas<int64_t>(params, num_rates, tiles, statistics, stream)
                     : launch_areas<int32_t>(params, num_rates, tiles, statistics, stream);
}

cudaError_t launch_ranking_rates(const PairsParams& params, const Rates& rates, double* statistics,
                                 cudaStream_t stream) {
  if (params.num_pairs * rates.count == 0) {
    return cudaSuccess;
  }
  const unsigned blocks = blocks_of((params.num_pairs * rates.count + kThreads - 1) / kThreads);
  if (params.wide) {
    rates_kernel<int64_t><<<blocks, kThreads, 0, stream>>>(params, rates, statistics);
  } else {
    rates_kernel<int32_t><<<blocks, kThreads, 0, stream>>>(params, rates, statistics);
  }
  return cudaGetLastError();
}

}  // namespace fastood::detection_metrics
