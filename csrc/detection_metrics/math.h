// Detection statistics of two ascending rows of keys, ID a[0 … N) and OOD b[0 … M); a higher key is more OOD.
//
//     below(j) = #{a < b_j}   upto(j) = #{a <= b_j}   first(j) = #{b < b_j}     per OOD score
//     own(i)   = #{a <= a_i}  other(i) = #{b <= a_i}                            per ID score
//
//     AUROC      Σ_j below(j) + upto(j), over 2 N M                             mid-ranks: the Mann-Whitney statistic
//     AUPR ood   Σ_j TP / (TP + FP) / M, TP = M - first(j), FP = N - below(j)   average precision, a term per positive
//     AUPR id    Σ_i own(i) / (own(i) + other(i)) / N
//     error      min_j (FP M + first(j) N) / (2 N M)                            half of FPR + FNR
//     FPR        FP / N at the strictest threshold with TP / M >= the rate; see write_rates
//
// With weights (how often a resampling drew each score) every count is a sum of weights: a difference of two elements of a
// running sum, at the same ranks. Counts are integers: sums of them are exact in any order. Only the average precisions are
// sums of rounded terms; their order is fixed (kLanes), so that threads, instruction sets and devices give the same bits.
#pragma once

#include <cmath>
#include <cstdint>

#include "keys.h"

namespace fastood::detection_metrics {

// Neither row may be longer, nor its weights sum to more: 2 N M then fits 64 bits, and ranks fit 31.
constexpr int64_t kMaxCount = std::numeric_limits<int32_t>::max();

// Average precisions are added up in tiles: term k of a tile to lane k % kLanes, then lanes pairwise (fold_lanes), then
// tiles the same way. A lane is a thread on CUDA; on the CPU the lanes are 16 vectors of AVX-512.
constexpr int64_t kLanes = 128;
// Scores of both classes, in merged order, that make a tile: their keys and ranks stay in a level-1 cache.
constexpr int64_t kTile = 2048;

template <typename Key>
struct ScorePair {
  const Key* id;  // [num_id], ascending
  int64_t num_id;
  const Key* ood;  // [num_ood], ascending
  int64_t num_ood;

  FASTOOD_HD int64_t size() const { return num_id + num_ood; }
  FASTOOD_HD bool has_both() const { return num_id > 0 && num_ood > 0; }
  // NaN scores sort to the end.
  FASTOOD_HD bool has_nan() const {
    return (num_id > 0 && id[num_id - 1] == kNanKey<Key>) || (num_ood > 0 && ood[num_ood - 1] == kNanKey<Key>);
  }
};

FASTOOD_HD int64_t num_tiles(int64_t size) {
  return (size + kTile - 1) / kTile;
}

// The contribution of a tile to the statistics of its pair.
struct RankSums {
  uint64_t twice_u;  // of AUROC
  int64_t cost;      // the smallest, of the detection error
  double aupr_ood;
  double aupr_id;
};

constexpr int64_t kLargestCost = std::numeric_limits<int64_t>::max();

// A term of the average precision: `weight` positives at a threshold with so many true and false ones.
FASTOOD_HD double precision_term(int32_t weight, int32_t true_positives, int32_t false_positives) {
  const double flagged = static_cast<double>(true_positives) + static_cast<double>(false_positives);
  const double term = static_cast<double>(weight) * static_cast<double>(true_positives) / flagged;
  return weight == 0 ? 0.0 : term;
}

FASTOOD_HD int64_t detection_cost(int32_t false_positives, int32_t num_ood, int32_t false_negatives, int32_t num_id) {
  return static_cast<int64_t>(false_positives) * num_ood + static_cast<int64_t>(false_negatives) * num_id;
}

// The number of elements of an ascending row below `key` (kWithEqual: or equal to it), all of them in [low, high].
template <bool kWithEqual, typename Key>
FASTOOD_HD int64_t count_below(const Key* keys, int64_t low, int64_t high, Key key) {
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    const bool counts = kWithEqual ? keys[middle] <= key : keys[middle] < key;
    low = counts ? middle + 1 : low;
    high = counts ? high : middle;
  }
  return low;
}

// A position in the merged order of both classes: the number of scores of each class before it.
struct MergePoint {
  int64_t id;
  int64_t ood;
};

// The place after `size` scores (merge path, Odeh et al. 2012). OOD scores come before equal ID scores: what is before a
// score of either class is then what the statistics count, below(j) and other(i).
template <typename Key>
FASTOOD_HD MergePoint merge_point(const ScorePair<Key>& pair, int64_t size) {
  int64_t low = size > pair.num_ood ? size - pair.num_ood : 0;
  int64_t high = size < pair.num_id ? size : pair.num_id;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    const bool before = pair.id[middle] < pair.ood[size - 1 - middle];
    low = before ? middle + 1 : low;
    high = before ? high : middle;
  }
  return {low, size - low};
}

// The smallest number of `count` elements that is at least `rate` of them, as computed by a division in float64, in
// which users write 0.95.
FASTOOD_HD int64_t required_count(double rate, int64_t count) {
  const double share = static_cast<double>(count);
  int64_t required = static_cast<int64_t>(ceil(rate * share));
  required = required < 1 ? 1 : required > count ? count : required;
  // One step at most: the product is off by a rounding.
  if (required > 1 && static_cast<double>(required - 1) / share >= rate) {
    --required;
  }
  if (required < count && static_cast<double>(required) / share < rate) {
    ++required;
  }
  return required;
}

// Running sums of weights that are all 1: how many elements come before element i.
struct CountBefore {
  int64_t total;
  FASTOOD_HD int64_t operator[](int64_t i) const { return i; }
};

// Running sums of weights, [count + 1] from 0 on.
struct WeightBefore {
  int64_t total;
  const int32_t* sums;
  FASTOOD_HD int64_t operator[](int64_t i) const { return sums[i]; }
};

// Statistics of one pair: four, then T each of FPR with OOD positive, FPR with ID positive, and their thresholds.
enum Statistic : int64_t { kAuroc, kAuprOod, kAuprId, kDetectionError, kRates };

FASTOOD_HD int64_t num_statistics(int64_t num_rates) {
  return kRates + 4 * num_rates;
}

FASTOOD_HD void write_areas(const RankSums& sums, int64_t num_id, int64_t num_ood, double* out) {
  const double twice_pairs = static_cast<double>(2 * static_cast<uint64_t>(num_id) * static_cast<uint64_t>(num_ood));
  out[kAuroc] = static_cast<double>(sums.twice_u) / twice_pairs;
  out[kAuprOod] = sums.aupr_ood / static_cast<double>(num_ood);
  out[kAuprId] = sums.aupr_id / static_cast<double>(num_id);
  out[kDetectionError] = static_cast<double>(sums.cost) / twice_pairs;
}

// FPR and threshold at the `which`-th of num_rates rates. The strictest threshold with enough true positives is a score of
// the positive class, found by bisection.
template <typename Key, typename Before>
FASTOOD_HD void write_rates(const ScorePair<Key>& pair, const Before& id_before, const Before& ood_before, double rate,
                            int64_t which, int64_t num_rates, double* out) {
  // OOD positive: the last j with enough OOD scores from j on.
  const int64_t most_before = ood_before.total - required_count(rate, ood_before.total);
  int64_t low = 0;
  int64_t high = pair.num_ood - 1;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    const bool enough = ood_before[middle] <= most_before;
    low = enough ? middle : low;
    high = enough ? high : middle - 1;
  }
  const Key ood_key = pair.ood[low];
  const int64_t rejected = id_before.total - id_before[count_below<false>(pair.id, 0, pair.num_id, ood_key)];
  // ID positive: the first i with enough ID scores up to i.
  const int64_t required = required_count(rate, id_before.total);
  low = 0;
  high = pair.num_id - 1;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    const bool enough = id_before[middle + 1] >= required;
    low = enough ? low : middle + 1;
    high = enough ? middle : high;
  }
  const Key id_key = pair.id[low];
  const int64_t accepted = ood_before[count_below<true>(pair.ood, 0, pair.num_ood, id_key)];
  double* rates = out + kRates + which;
  rates[0] = static_cast<double>(rejected) / static_cast<double>(id_before.total);
  rates[num_rates] = static_cast<double>(accepted) / static_cast<double>(ood_before.total);
  rates[2 * num_rates] = score_of(ood_key);
  rates[3 * num_rates] = score_of(id_key);
}

FASTOOD_HD void write_no_rates(int64_t which, int64_t num_rates, double* out) {
  for (int column = 0; column < 4; ++column) {
    out[kRates + which + column * num_rates] = NAN;
  }
}

}  // namespace fastood::detection_metrics
