// Shared by the kernels of the detection statistics: pairs of rows, and sums over the lanes of a tile in the CPU's order.
#pragma once

#include "../common/grid_limit.h"
#include "cuda.h"

namespace fastood::detection_metrics {

constexpr int kThreads = static_cast<int>(kLanes);  // a lane of math.h is a thread

template <typename Key>
__device__ __forceinline__ ScorePair<Key> pair_of(const PairsParams& p, int64_t index) {
  const int64_t same = p.num_id_rows == 1 ? 0 : index;
  const int64_t id_row = p.id_row == nullptr ? same : p.id_row[index];
  if (id_row < 0 || id_row >= p.num_id_rows) {
    return {nullptr, 0, nullptr, 0};
  }
  const int64_t num_id = p.id_count == nullptr ? p.id_columns : p.id_count[id_row];
  const int64_t num_ood = p.ood_count == nullptr ? p.ood_columns : p.ood_count[index];
  if (num_id < 0 || num_id > p.id_columns || num_ood < 0 || num_ood > p.ood_columns) {
    return {nullptr, 0, nullptr, 0};
  }
  const ScorePair<Key> pair{static_cast<const Key*>(p.id_keys) + id_row * p.id_columns, num_id,
                            static_cast<const Key*>(p.ood_keys) + index * p.ood_columns, num_ood};
  return pair.has_both() && !pair.has_nan() ? pair : ScorePair<Key>{nullptr, 0, nullptr, 0};
}

// This thread's part of the sums of a tile or of several.
struct LaneSums {
  uint64_t twice_u = 0;
  int64_t cost = kLargestCost;
  double aupr_ood = 0;
  double aupr_id = 0;
};

struct SharedSums {
  uint64_t twice_u[kThreads];
  int64_t cost[kThreads];
  double aupr_ood[kThreads];
  double aupr_id[kThreads];
};

__device__ __forceinline__ void add_ood(LaneSums& sums, int32_t weight, int32_t below, int32_t upto, int32_t first,
                                        int32_t num_id, int32_t num_ood) {
  sums.aupr_ood += precision_term(weight, num_ood - first, num_id - below);
  sums.twice_u += static_cast<uint64_t>(static_cast<uint32_t>(weight)) *
                  (static_cast<uint64_t>(static_cast<uint32_t>(below)) + static_cast<uint32_t>(upto));
  const int64_t cost = detection_cost(num_id - below, num_ood, first, num_id);
  sums.cost = cost < sums.cost ? cost : sums.cost;
}

// Pairwise, as fold_lanes of cpu.h. For all threads of the block; the result is for thread 0.
__device__ __forceinline__ RankSums fold(const LaneSums& own, SharedSums& shared) {
  const int lane = threadIdx.x;
  shared.twice_u[lane] = own.twice_u;
  shared.cost[lane] = own.cost;
  shared.aupr_ood[lane] = own.aupr_ood;
  shared.aupr_id[lane] = own.aupr_id;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) {
      shared.twice_u[lane] += shared.twice_u[lane + half];
      shared.cost[lane] = shared.cost[lane + half] < shared.cost[lane] ? shared.cost[lane + half] : shared.cost[lane];
      shared.aupr_ood[lane] += shared.aupr_ood[lane + half];
      shared.aupr_id[lane] += shared.aupr_id[lane + half];
    }
  }
  // Only thread 0 reads the sums: it makes the last additions, and no barrier orders other threads after them.
  return lane > 0 ? RankSums{} : RankSums{shared.twice_u[0], shared.cost[0], shared.aupr_ood[0], shared.aupr_id[0]};
}

// The sums of a pair from those of its tiles, as TileAdder of cpu.h. For all threads; the result is for thread 0.
__device__ __forceinline__ RankSums add_tiles(const RankSums* tiles, int64_t count, SharedSums& shared) {
  LaneSums sums;
  for (int64_t tile = threadIdx.x; tile < count; tile += kThreads) {
    const RankSums here = tiles[tile];
    sums.twice_u += here.twice_u;
    sums.cost = here.cost < sums.cost ? here.cost : sums.cost;
    sums.aupr_ood += here.aupr_ood;
    sums.aupr_id += here.aupr_id;
  }
  return fold(sums, shared);
}

// Keys of a tile and its neighbours, in shared memory.
template <typename Key>
struct SharedTile {
  Key keys[kTile];  // ID, then OOD
  MergePoint begin;
  MergePoint end;
  int64_t first_of_run;  // OOD scores below the first one
  bool has_next;
  Key next;            // ID score after the tile
  int64_t end_of_run;  // ID scores up to `next`
};

// Calls ood(position, below, upto, first) and id(position, own, other) for this thread's scores of a tile, lane by lane in
// the CPU's order. Ranks are found by bisection in shared memory: eleven steps, the same for random and for tied scores.
// Two barriers before keys are read: what a call reads after them, the next one writes after its first.
template <typename Key, typename OodBody, typename IdBody>
__device__ __forceinline__ void for_ranks(const ScorePair<Key>& pair, int64_t tile, SharedTile<Key>& shared,
                                          const OodBody& ood_body, const IdBody& id_body) {
  // 1) where the tile begins and ends
  if (threadIdx.x < 2) {
    const int64_t size = (tile + threadIdx.x) * kTile;
    const MergePoint point = merge_point(pair, size < pair.size() ? size : pair.size());
    (threadIdx.x == 0 ? shared.begin : shared.end) = point;
  }
  __syncthreads();
  const MergePoint begin = shared.begin;
  const int64_t size = shared.end.id + shared.end.ood - begin.id - begin.ood;
  // Of rows that do not ascend, which the CPU op refuses, the merge points may cross: the tile stays inside of both rows.
  const int64_t wanted = shared.end.id - begin.id;
  const int64_t num_id = wanted < 0 ? 0 : wanted > size ? size : wanted;
  const int64_t num_ood = size - num_id;
  const MergePoint end{begin.id + num_id, begin.ood + num_ood};
  // 2) its keys, and the runs of equal ones that cross its ends
  Key* const id = shared.keys;
  Key* const ood = shared.keys + num_id;
  for (int64_t k = threadIdx.x; k < num_id + num_ood; k += kThreads) {
    shared.keys[k] = k < num_id ? pair.id[begin.id + k] : pair.ood[begin.ood + k - num_id];
  }
  if (threadIdx.x == 0) {
    const bool continues = num_ood > 0 && begin.ood > 0 && pair.ood[begin.ood - 1] == pair.ood[begin.ood];
    shared.first_of_run = continues ? count_below<false>(pair.ood, 0, begin.ood, pair.ood[begin.ood]) : begin.ood;
  } else if (threadIdx.x == 32) {
    shared.has_next = end.id < pair.num_id;
    shared.next = shared.has_next ? pair.id[end.id] : Key{0};
    shared.end_of_run = shared.has_next ? count_below<true>(pair.id, end.id, pair.num_id, pair.id[end.id]) : end.id;
  }
  __syncthreads();
  // 3) ranks; `local` ID scores of the tile are at most `key`, and more after it if a run of equal scores crosses its
  // end
  const auto id_upto = [&](int64_t local, Key key) {
    const bool crosses = local == num_id && shared.has_next && shared.next == key;
    return static_cast<int32_t>(crosses ? shared.end_of_run : begin.id + local);
  };
  for (int64_t j = threadIdx.x; j < num_ood; j += kThreads) {
    const Key key = ood[j];
    const int64_t below = count_below<false>(id, 0, num_id, key);
    const int64_t upto = count_below<true>(id, below, num_id, key);
    const int64_t first = count_below<false>(ood, 0, j, key);
    ood_body(begin.ood + j, static_cast<int32_t>(begin.id + below), id_upto(upto, key),
             static_cast<int32_t>(first == 0 ? shared.first_of_run : begin.ood + first));
  }
  for (int64_t i = threadIdx.x; i < num_id; i += kThreads) {
    const Key key = id[i];
    const int64_t own = count_below<true>(id, i + 1, num_id, key);
    const int64_t other = count_below<true>(ood, 0, num_ood, key);
    id_body(begin.id + i, id_upto(own, key), static_cast<int32_t>(begin.ood + other));
  }
}

inline unsigned blocks_of(int64_t wanted) {
  return grid_limit(wanted, std::numeric_limits<int32_t>::max());  // the most that a launch may have
}

}  // namespace fastood::detection_metrics
