// Launchers of the detection statistics' kernels: torch-free, so that a .cu compiles in seconds and needs no torch headers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/logit_type.h"
#include "math.h"
#include "random.h"

namespace fastood::detection_metrics {

struct SortParams {
  LogitType type;
  const void* scores;     // [num_rows, num_columns]
  const int64_t* counts;  // [num_rows] or null
  int64_t num_rows;
  int64_t num_columns;
  void* unsorted;  // scratch, [num_rows, num_columns] keys
  void* keys;      // [num_rows, num_columns]
  void* work;      // scratch, work_bytes
  size_t work_bytes;
};

// Pairs of rows, as RankingInput has them.
struct PairsParams {
  bool wide;             // keys of 64 bits, else of 32
  const void* id_keys;   // [num_id_rows, id_columns]
  const void* ood_keys;  // [num_pairs, ood_columns]
  int64_t num_id_rows;
  int64_t id_columns;
  int64_t num_pairs;
  int64_t ood_columns;
  const int64_t* id_row;     // [num_pairs] or null
  const int64_t* id_count;   // [num_id_rows] or null
  const int64_t* ood_count;  // [num_pairs] or null

  // Of the largest pair there can be; those of a smaller one are fewer.
  int64_t max_tiles() const { return num_tiles(id_columns + ood_columns); }
};

// Rates for a launch, by value: more of them take more launches.
constexpr int64_t kRatesPerLaunch = 32;
struct Rates {
  double values[kRatesPerLaunch];
  int64_t first;  // the number of values[0] among all
  int64_t count;
  int64_t num_rates;
};

// One pair whose scores count by weights, num_replicates times.
struct WeightedParams {
  const int32_t* id_weight;   // [num_replicates, num_id] or null: all 1
  const int32_t* ood_weight;  // [num_replicates, num_ood] or null
  int64_t num_replicates;
  int32_t* ranks;       // scratch, [3 num_ood + 2 num_id]
  int32_t* id_before;   // scratch, [num_replicates, num_id + 1]
  int32_t* ood_before;  // scratch, [num_replicates, num_ood + 1]
  int64_t* totals;      // scratch, [num_replicates, 2]; -1 where weights are out of range
};

struct CountsParams {
  Resampling scheme;
  RandomStream first;
  int64_t num_replicates;
  int64_t count;
  int64_t size;
  int32_t* counts;  // [num_replicates, count]
};

// Bytes of SortParams::work; work_bytes receives them.
cudaError_t sort_scores_work_bytes(const SortParams& params, size_t* work_bytes);
cudaError_t launch_sort_scores(const SortParams& params, cudaStream_t stream);

// tiles: scratch, [num_pairs, max_tiles]; statistics: [num_pairs, num_statistics(num_rates)].
cudaError_t launch_ranking_areas(const PairsParams& params, int64_t num_rates, RankSums* tiles, double* statistics,
                                 cudaStream_t stream);
cudaError_t launch_ranking_rates(const PairsParams& params, const Rates& rates, double* statistics,
                                 cudaStream_t stream);

// tiles: scratch, [num_replicates, num_tiles(of the longer row)]; statistics: [num_replicates, …].
cudaError_t launch_weighted_areas(const PairsParams& pair, const WeightedParams& params, int64_t num_rates,
                                  RankSums* tiles, double* statistics, cudaStream_t stream);
cudaError_t launch_weighted_rates(const PairsParams& pair, const WeightedParams& params, const Rates& rates,
                                  double* statistics, cudaStream_t stream);

cudaError_t launch_resampling_counts(const CountsParams& params, cudaStream_t stream);

}  // namespace fastood::detection_metrics
