// Detection statistics on the CPU. Compiled once per instruction set: see common/cpu_capability.h.
//
// Bytes: one read of the keys; a tile's keys and ranks stay in the level-1 cache. Operations per score: a step of the merge, a
// chain of about eight cycles of which several run side by side, and of the vectorised rest a division in float64.
#include "cpu.h"

#ifndef FASTOOD_CPU_CAPABILITY
#error "FASTOOD_CPU_CAPABILITY names the namespace of this copy; CMakeLists.txt sets it"
#endif

namespace fastood::detection_metrics::FASTOOD_CPU_CAPABILITY {
namespace {

// The counts that the statistics are made of, unweighted: ranks themselves.
struct UnitWeights {
  const int32_t* below;
  const int32_t* upto;
  const int32_t* first;
  const int32_t* own;
  const int32_t* other;

  FASTOOD_HD int32_t ood_weight(int64_t) const { return 1; }
  FASTOOD_HD int32_t id_weight(int64_t) const { return 1; }
  FASTOOD_HD int32_t ood_below(int64_t j) const { return below[j]; }
  FASTOOD_HD int32_t ood_upto(int64_t j) const { return upto[j]; }
  FASTOOD_HD int32_t ood_first(int64_t j) const { return first[j]; }
  FASTOOD_HD int32_t id_own(int64_t i) const { return own[i]; }
  FASTOOD_HD int32_t id_other(int64_t i) const { return other[i]; }
};

// ... weighted: running sums of weights at the ranks.
struct RunningWeights {
  Ranks ranks;
  const int32_t* id_before;
  const int32_t* ood_before;

  FASTOOD_HD int32_t ood_weight(int64_t j) const { return ood_before[j + 1] - ood_before[j]; }
  FASTOOD_HD int32_t id_weight(int64_t i) const { return id_before[i + 1] - id_before[i]; }
  FASTOOD_HD int32_t ood_below(int64_t j) const { return id_before[ranks.below[j]]; }
  FASTOOD_HD int32_t ood_upto(int64_t j) const { return id_before[ranks.upto[j]]; }
  FASTOOD_HD int32_t ood_first(int64_t j) const { return ood_before[ranks.first[j]]; }
  FASTOOD_HD int32_t id_own(int64_t i) const { return id_before[ranks.own[i]]; }
  FASTOOD_HD int32_t id_other(int64_t i) const { return ood_before[ranks.other[i]]; }
};

// Sums over OOD scores [begin, end) and ID scores likewise; P and N are the totals of weights.
template <typename Weights>
FASTOOD_HD RankSums sum_tile(const Weights& at, int64_t begin_ood, int64_t end_ood, int32_t num_ood, int64_t begin_id,
                             int64_t end_id, int32_t num_id) {
  alignas(64) double lanes[kLanes] = {};
  RankSums sums{0, kLargestCost, 0, 0};
  uint64_t twice_u = 0;
  int64_t cost = kLargestCost;
  for (int64_t base = begin_ood; base < end_ood; base += kLanes) {
    const int64_t count = end_ood - base < kLanes ? end_ood - base : kLanes;
#pragma omp simd reduction(+ : twice_u) reduction(min : cost)
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t j = base + lane;
      const int32_t weight = at.ood_weight(j);
      const int32_t below = at.ood_below(j);
      const int32_t first = at.ood_first(j);
      const int32_t upto = at.ood_upto(j);
      lanes[lane] += precision_term(weight, num_ood - first, num_id - below);
      twice_u += static_cast<uint64_t>(static_cast<uint32_t>(weight)) *
                 (static_cast<uint64_t>(static_cast<uint32_t>(below)) + static_cast<uint32_t>(upto));
      const int64_t here = detection_cost(num_id - below, num_ood, first, num_id);
      cost = here < cost ? here : cost;
    }
  }
  sums.twice_u = twice_u;
  sums.cost = cost;
  sums.aupr_ood = fold_lanes(lanes);
  for (double& lane : lanes) {
    lane = 0;
  }
  for (int64_t base = begin_id; base < end_id; base += kLanes) {
    const int64_t count = end_id - base < kLanes ? end_id - base : kLanes;
#pragma omp simd
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t i = base + lane;
      lanes[lane] += precision_term(at.id_weight(i), at.id_own(i), at.id_other(i));
    }
  }
  sums.aupr_id = fold_lanes(lanes);
  return sums;
}

// Parts of a tile merged side by side.
constexpr int64_t kMerges = 4;

// Keys and ranks of a tile, numbered from its first scores.
template <typename Key>
struct Tile {
  int64_t num_id;
  int64_t num_ood;
  // One key more than belongs to the tile: the next one, or one above all, which ends the merge.
  alignas(64) Key id[kTile + 1];
  alignas(64) Key ood[kTile + 1];
  alignas(64) int32_t below[kTile + 1];
  alignas(64) int32_t upto[kTile + 1];
  alignas(64) int32_t first[kTile + 1];
  alignas(64) int32_t own[kTile + 1];
  alignas(64) int32_t other[kTile + 1];
};

template <typename Key>
FASTOOD_HD void load_keys(const Key* row, int64_t count, int64_t begin, int64_t end, Key* keys) {
  for (int64_t i = begin; i < end; ++i) {
    keys[i - begin] = row[i];
  }
  keys[end - begin] = end < count ? row[end] : kNanKey<Key>;
}

// below and other: the number of scores of the other class before each score in merged order. Each step writes to the
// next score of both classes and advances past the smaller one by an addition, because compilers turn a choice into a
// branch, which is often mispredicted. A step depends on the previous one; merges of several parts of the tile are
// independent.
template <typename Key>
FASTOOD_HD void merge(MergePoint begin, Tile<Key>& tile) {
  const int32_t first_id = static_cast<int32_t>(begin.id);
  const int32_t first_ood = static_cast<int32_t>(begin.ood);
  const ScorePair<Key> keys{tile.id, tile.num_id, tile.ood, tile.num_ood};
  const int64_t part = keys.size() / kMerges;
  int64_t id[kMerges];
  for (int64_t m = 0; m < kMerges; ++m) {
    id[m] = merge_point(keys, m * part).id;
  }
  const auto step = [&](int64_t place, int64_t& i) __attribute__((always_inline)) {
    const int64_t j = place - i;
    tile.other[i] = first_ood + static_cast<int32_t>(j);
    tile.below[j] = first_id + static_cast<int32_t>(i);
    i += static_cast<int64_t>(tile.id[i] < tile.ood[j]);
  };
  for (int64_t place = 0; place < part; ++place) {
    FASTOOD_UNROLL
    for (int64_t m = 0; m < kMerges; ++m) {
      step(m * part + place, id[m]);
    }
  }
  for (int64_t place = kMerges * part; place < keys.size(); ++place) {
    step(place, id[kMerges - 1]);
  }
  // At its end a merge has also written to the first score of the next merge.
  for (int64_t m = 0; m + 1 < kMerges; ++m) {
    const int64_t i = id[m];
    const int64_t j = (m + 1) * part - i;
    if (i < tile.num_id) {
      tile.other[i] = first_ood + static_cast<int32_t>(count_below<true>(tile.ood, j, tile.num_ood, tile.id[i]));
    }
    if (j < tile.num_ood) {
      tile.below[j] = first_id + static_cast<int32_t>(count_below<false>(tile.id, i, tile.num_id, tile.ood[j]));
    }
  }
}

template <typename Key>
FASTOOD_HD void fill_tile(const ScorePair<Key>& pair, MergePoint begin, MergePoint end, Tile<Key>& tile) {
  tile.num_id = end.id - begin.id;
  tile.num_ood = end.ood - begin.ood;
  load_keys(pair.id, pair.num_id, begin.id, end.id, tile.id);
  load_keys(pair.ood, pair.num_ood, begin.ood, end.ood, tile.ood);
  merge(begin, tile);
  // Ties within a class; a run of equal scores may begin before the tile or end after it.
  if (tile.num_ood > 0) {
    const bool continues = begin.ood > 0 && pair.ood[begin.ood - 1] == tile.ood[0];
    int32_t first =
        static_cast<int32_t>(continues ? count_below<false>(pair.ood, 0, begin.ood, tile.ood[0]) : begin.ood);
    tile.first[0] = first;
    for (int64_t j = 1; j < tile.num_ood; ++j) {
      first = tile.ood[j] == tile.ood[j - 1] ? first : static_cast<int32_t>(begin.ood + j);
      tile.first[j] = first;
    }
  }
  // Of the next ID score as well: the last OOD scores of the tile may equal it.
  const bool has_next = end.id < pair.num_id;
  int32_t last =
      static_cast<int32_t>(has_next ? count_below<true>(pair.id, end.id, pair.num_id, tile.id[tile.num_id]) : end.id);
  tile.own[tile.num_id] = last;
  for (int64_t i = tile.num_id - 1; i >= 0; --i) {
    last = tile.id[i] == tile.id[i + 1] ? last : static_cast<int32_t>(begin.id + i + 1);
    tile.own[i] = last;
  }
  // Ties between the classes: where the next ID score is equal, up to the end of its run.
  const int32_t first_id = static_cast<int32_t>(begin.id);
#pragma omp simd
  for (int64_t j = 0; j < tile.num_ood; ++j) {
    const int32_t next = tile.below[j] - first_id;
    const int32_t end_of_run = tile.own[next];
    tile.upto[j] = tile.id[next] == tile.ood[j] ? end_of_run : tile.below[j];
  }
}

// Numbers u(begin) … u(begin + count - 1), and one more where count is odd; begin is even.
FASTOOD_HD void fill_random(const RandomStream& stream, int64_t begin, int64_t count, uint64_t* numbers) {
  const int64_t num_pairs = (count + 1) / 2;
#pragma omp simd
  for (int64_t pair = 0; pair < num_pairs; ++pair) {
    const RandomPair drawn = philox(stream, static_cast<uint64_t>(begin / 2 + pair));
    numbers[2 * pair] = drawn.first;
    numbers[2 * pair + 1] = drawn.second;
  }
}

// Calls body(begin, count, numbers) for all draws of a replicate, kDraws at a time.
template <typename Body>
FASTOOD_HD void for_draws(const RandomStream& stream, int64_t count, const Body& body) {
  alignas(64) uint64_t numbers[kDraws];
  for (int64_t begin = 0; begin < count; begin += kDraws) {
    const int64_t here = count - begin < kDraws ? count - begin : kDraws;
    fill_random(stream, begin, here, numbers);
    body(begin, here, numbers);
  }
}

void draw_multinomial(const RandomStream& stream, int64_t count, int32_t* counts) {
  for_draws(stream, count, [=](int64_t, int64_t here, uint64_t* numbers) {
#pragma omp simd
    for (int64_t draw = 0; draw < here; ++draw) {
      numbers[draw] = scale_draw(numbers[draw], static_cast<uint64_t>(count));
    }
    for (int64_t draw = 0; draw < here; ++draw) {
      ++counts[numbers[draw]];
    }
  });
}

void draw_poisson(const RandomStream& stream, int64_t count, int32_t* counts) {
  for_draws(stream, count, [=](int64_t begin, int64_t here, const uint64_t* numbers) {
#pragma omp simd
    for (int64_t draw = 0; draw < here; ++draw) {
      counts[begin + draw] = poisson_draw(numbers[draw]);
    }
  });
}

void draw_subset(const RandomStream& stream, int64_t count, int64_t size, int32_t* counts) {
  SubsetBound bound = SubsetBound::of(size);
  while (bound.is_open) {
    int64_t bins[SubsetBound::kBins] = {};
    for_draws(stream, count, [&](int64_t, int64_t here, const uint64_t* numbers) {
      for (int64_t draw = 0; draw < here; ++draw) {
        bins[bound.bin(numbers[draw])] += bound.in_question(numbers[draw]) ? 1 : 0;
      }
    });
    bound.narrow(bins);
  }
  int64_t missing = bound.missing;
  for_draws(stream, count, [&](int64_t begin, int64_t here, const uint64_t* numbers) {
    for (int64_t draw = 0; draw < here; ++draw) {
      const bool in_question = bound.in_question(numbers[draw]);
      counts[begin + draw] = bound.is_smaller(numbers[draw]) || (in_question && missing > 0) ? 1 : 0;
      missing -= in_question ? 1 : 0;
    }
  });
}

}  // namespace

template <typename Key>
bool is_ascending(const Key* keys, int64_t count) {
  int32_t falls = 0;
#pragma omp simd reduction(| : falls)
  for (int64_t i = 1; i < count; ++i) {
    falls |= keys[i] < keys[i - 1] ? 1 : 0;
  }
  return falls == 0;
}

template <typename Key>
RankSums rank_tile(const ScorePair<Key>& pair, MergePoint begin, MergePoint end) {
  Tile<Key> tile;
  fill_tile(pair, begin, end, tile);
  const UnitWeights at{tile.below, tile.upto, tile.first, tile.own, tile.other};
  return sum_tile(at, 0, tile.num_ood, static_cast<int32_t>(pair.num_ood), 0, tile.num_id,
                  static_cast<int32_t>(pair.num_id));
}

template <typename Key>
void write_ranks(const ScorePair<Key>& pair, MergePoint begin, MergePoint end, const Ranks& ranks) {
  Tile<Key> tile;
  fill_tile(pair, begin, end, tile);
  for (int64_t j = 0; j < tile.num_ood; ++j) {
    ranks.below[begin.ood + j] = tile.below[j];
    ranks.upto[begin.ood + j] = tile.upto[j];
    ranks.first[begin.ood + j] = tile.first[j];
  }
  for (int64_t i = 0; i < tile.num_id; ++i) {
    ranks.own[begin.id + i] = tile.own[i];
    ranks.other[begin.id + i] = tile.other[i];
  }
}

RankSums rank_weighted(const Ranks& ranks, int64_t num_id, WeightBefore id_before, int64_t num_ood,
                       WeightBefore ood_before) {
  const RunningWeights at{ranks, id_before.sums, ood_before.sums};
  const int64_t count = num_tiles(num_id < num_ood ? num_ood : num_id);
  TileAdder total;
  for (int64_t tile = 0; tile < count; ++tile) {
    const int64_t begin = tile * kTile;
    const auto end = [begin](int64_t size) {
      return size < begin ? begin : size < begin + kTile ? size : begin + kTile;
    };
    total.add(tile, sum_tile(at, begin, end(num_ood), static_cast<int32_t>(ood_before.total), begin, end(num_id),
                             static_cast<int32_t>(id_before.total)));
  }
  return total.sums();
}

void draw_counts(const RandomStream& stream, Resampling scheme, int64_t count, int64_t size, int32_t* counts) {
  switch (scheme) {
    case Resampling::kMultinomial:
      for (int64_t i = 0; i < count; ++i) {
        counts[i] = 0;
      }
      return draw_multinomial(stream, count, counts);
    case Resampling::kPoisson:
      return draw_poisson(stream, count, counts);
    case Resampling::kSubset:
      return draw_subset(stream, count, size, counts);
  }
}

#define FASTOOD_INSTANTIATE(Key)                                                   \
  template bool is_ascending<Key>(const Key*, int64_t);                            \
  template RankSums rank_tile<Key>(const ScorePair<Key>&, MergePoint, MergePoint); \
  template void write_ranks<Key>(const ScorePair<Key>&, MergePoint, MergePoint, const Ranks&);
FASTOOD_INSTANTIATE(int32_t)
FASTOOD_INSTANTIATE(int64_t)
#undef FASTOOD_INSTANTIATE

}  // namespace fastood::detection_metrics::FASTOOD_CPU_CAPABILITY
