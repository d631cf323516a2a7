// torch.ops.fastood.ranking_statistics, weighted_ranking_statistics and resampling_counts on the CPU.
#include <algorithm>
#include <memory>

#include "../common/cpu_rows.h"
#include "cpu.h"
#include "op.h"

namespace fastood::detection_metrics {
namespace {

// Tiles below which a second thread costs more than it saves.
constexpr int64_t kTileGrain = kGrain / kTile;

template <typename Body>
void dispatch_keys(const Tensor& keys, const Body& body) {
  if (keys.scalar_type() == ScalarType::Int) {
    return body.template operator()<int32_t>();
  }
  return body.template operator()<int64_t>();
}

int64_t number_in_range(const int64_t* numbers, int64_t row, int64_t limit, const char* name) {
  STD_TORCH_CHECK(numbers[row] >= 0 && numbers[row] <= limit, name, " must be in [0, ", limit, "], got ", numbers[row],
                  " in row ", row);
  return numbers[row];
}

// A row of keys, of which the first `count` are checked to be sorted.
template <typename Key>
const Key* sorted_row(const Tensor& keys, int64_t row, int64_t count, const char* name) {
  const Key* first = static_cast<const Key*>(keys.const_data_ptr()) + row * keys.size(1);
  STD_TORCH_CHECK(FASTOOD_CPU_DISPATCH(is_ascending<Key>)(first, count), name, " must ascend in each row, row ", row,
                  " does not: see sort_scores");
  return first;
}

template <typename Key>
std::vector<ScorePair<Key>> pairs_of(const RankingInput& in) {
  const int64_t columns = in.id_keys.size(1);
  std::vector<ScorePair<Key>> id_rows(in.num_id_rows());
  for (int64_t row = 0; row < in.num_id_rows(); ++row) {
    const int64_t count = in.id_count == nullptr ? columns : number_in_range(in.id_count, row, columns, "id_count");
    id_rows[row] = {sorted_row<Key>(in.id_keys, row, count, "id_keys"), count, nullptr, 0};
  }
  const int64_t ood_columns = in.ood_keys.size(1);
  std::vector<ScorePair<Key>> pairs(in.num_pairs());
  for (int64_t row = 0; row < in.num_pairs(); ++row) {
    const int64_t same = in.num_id_rows() == 1 ? 0 : row;
    const int64_t id_row =
        in.id_row == nullptr ? same : number_in_range(in.id_row, row, in.num_id_rows() - 1, "id_row");
    const int64_t count =
        in.ood_count == nullptr ? ood_columns : number_in_range(in.ood_count, row, ood_columns, "ood_count");
    pairs[row] = id_rows[id_row];
    pairs[row].ood = sorted_row<Key>(in.ood_keys, row, count, "ood_keys");
    pairs[row].num_ood = count;
  }
  return pairs;
}

// Calls body(begin, end, tile) for tiles [first, last) of a pair, with the merge points that they lie between.
template <typename Key, typename Body>
void for_tiles(const ScorePair<Key>& pair, int64_t first, int64_t last, const Body& body) {
  MergePoint begin = merge_point(pair, first * kTile);
  for (int64_t tile = first; tile < last; ++tile) {
    const MergePoint end = merge_point(pair, std::min((tile + 1) * kTile, pair.size()));
    body(begin, end, tile);
    begin = end;
  }
}

template <typename Key, typename Before>
void write_statistics(const ScorePair<Key>& pair, const RankSums& sums, const Before& id_before,
                      const Before& ood_before, const std::vector<double>& tpr, double* out) {
  write_areas(sums, id_before.total, ood_before.total, out);
  const auto num_rates = static_cast<int64_t>(tpr.size());
  for (int64_t rate = 0; rate < num_rates; ++rate) {
    write_rates(pair, id_before, ood_before, tpr[rate], rate, num_rates, out);
  }
}

Tensor ranking_statistics_cpu(const Tensor& id_keys, const Tensor& ood_keys, const std::optional<Tensor>& id_row,
                              const std::optional<Tensor>& id_count, const std::optional<Tensor>& ood_count,
                              std::vector<double> tpr) {
  const RankingInput in(id_keys, ood_keys, id_row, id_count, ood_count, std::move(tpr));
  const Tensor result = in.empty_statistics();
  auto* out = static_cast<double*>(result.mutable_data_ptr());
  std::fill_n(out, result.numel(), NAN);
  dispatch_keys(id_keys, [&]<typename Key>() {
    const std::vector<ScorePair<Key>> pairs = pairs_of<Key>(in);
    // Tiles of all pairs in one line: many small sets and one large one keep threads equally busy.
    std::vector<int64_t> first_tile(pairs.size() + 1);
    for (size_t p = 0; p < pairs.size(); ++p) {
      const bool has_statistics = pairs[p].has_both() && !pairs[p].has_nan();
      first_tile[p + 1] = first_tile[p] + (has_statistics ? num_tiles(pairs[p].size()) : 0);
    }
    std::vector<RankSums> tiles(first_tile.back());
    torch::stable::parallel_for(0, first_tile.back(), kTileGrain, [&](int64_t begin, int64_t end) {
      for (int64_t next = begin; next < end;) {
        const int64_t p = std::upper_bound(first_tile.begin(), first_tile.end(), next) - first_tile.begin() - 1;
        const int64_t last = std::min(end, first_tile[p + 1]);
        for_tiles(pairs[p], next - first_tile[p], last - first_tile[p], [&](MergePoint a, MergePoint b, int64_t tile) {
          tiles[first_tile[p] + tile] = FASTOOD_CPU_DISPATCH(rank_tile<Key>)(pairs[p], a, b);
        });
        next = last;
      }
    });
    for (size_t p = 0; p < pairs.size(); ++p) {
      TileAdder total;
      const int64_t count = first_tile[p + 1] - first_tile[p];
      for (int64_t tile = 0; tile < count; ++tile) {
        total.add(tile, tiles[first_tile[p] + tile]);
      }
      if (count > 0) {
        write_statistics(pairs[p], total.sums(), CountBefore{pairs[p].num_id}, CountBefore{pairs[p].num_ood}, in.tpr,
                         out + static_cast<int64_t>(p) * result.size(1));
      }
    }
  });
  return result;
}

// Memory of the ranks of one pair, and of running sums for a thread.
struct RankMemory {
  std::unique_ptr<int32_t[]> numbers;
  Ranks ranks;

  RankMemory(int64_t num_id, int64_t num_ood) : numbers(new int32_t[static_cast<size_t>(3 * num_ood + 2 * num_id)]) {
    int32_t* const first = numbers.get();
    ranks = {first, first + num_ood, first + 2 * num_ood, first + 3 * num_ood, first + 3 * num_ood + num_id};
  }
};

// Running sums of weights (of ones without them) into sums[count + 1].
WeightBefore running_sums(const int32_t* weights, int64_t count, const char* name, int32_t* sums) {
  int64_t total = 0;
  int32_t any = 0;
  sums[0] = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t weight = weights == nullptr ? 1 : weights[i];
    any |= weight;  // negative where one is
    total += weight;
    sums[i + 1] = static_cast<int32_t>(total);
  }
  STD_TORCH_CHECK(any >= 0, name, " must not be negative");
  STD_TORCH_CHECK(total <= kMaxCount, name, " must sum to at most ", kMaxCount, " per replicate, got ", total);
  return {total, sums};
}

Tensor weighted_ranking_statistics_cpu(const Tensor& id_keys, const Tensor& ood_keys,
                                       const std::optional<Tensor>& id_weight, const std::optional<Tensor>& ood_weight,
                                       std::vector<double> tpr) {
  const WeightedInput in(id_keys, ood_keys, id_weight, ood_weight, std::move(tpr));
  const Tensor result = in.empty_statistics();
  auto* out = static_cast<double*>(result.mutable_data_ptr());
  std::fill_n(out, result.numel(), NAN);
  dispatch_keys(id_keys, [&]<typename Key>() {
    const int64_t num_id = id_keys.size(1);
    const int64_t num_ood = ood_keys.size(1);
    const ScorePair<Key> pair{sorted_row<Key>(id_keys, 0, num_id, "id_keys"), num_id,
                              sorted_row<Key>(ood_keys, 0, num_ood, "ood_keys"), num_ood};
    if (!pair.has_both() || pair.has_nan()) {
      return;
    }
    const RankMemory memory(num_id, num_ood);
    torch::stable::parallel_for(0, num_tiles(pair.size()), kTileGrain, [&](int64_t begin, int64_t end) {
      for_tiles(pair, begin, end, [&](MergePoint a, MergePoint b, int64_t) {
        FASTOOD_CPU_DISPATCH(write_ranks<Key>)(pair, a, b, memory.ranks);
      });
    });
    const int64_t grain = std::max<int64_t>(1, kGrain / pair.size());
    torch::stable::parallel_for(0, in.num_replicates, grain, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<int32_t[]> sums(new int32_t[static_cast<size_t>(pair.size() + 2)]);
      for (int64_t r = begin; r < end; ++r) {
        const auto weights_of = [r](const int32_t* weights, int64_t count) {
          return weights == nullptr ? nullptr : weights + r * count;
        };
        const WeightBefore id_before = running_sums(weights_of(in.id_weight, num_id), num_id, "id_weight", sums.get());
        const WeightBefore ood_before =
            running_sums(weights_of(in.ood_weight, num_ood), num_ood, "ood_weight", sums.get() + num_id + 1);
        if (id_before.total > 0 && ood_before.total > 0) {
          const RankSums found =
              FASTOOD_CPU_DISPATCH(rank_weighted)(memory.ranks, num_id, id_before, num_ood, ood_before);
          write_statistics(pair, found, id_before, ood_before, in.tpr, out + r * result.size(1));
        }
      }
    });
  });
  return result;
}

void resampling_counts_cpu(const Tensor& counts, int64_t seed, int64_t stream, int64_t first_replicate, int64_t scheme,
                           int64_t size) {
  const CountsInput in(counts, seed, stream, first_replicate, scheme, size);
  auto* out = static_cast<int32_t*>(counts.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, in.count));
  torch::stable::parallel_for(0, in.num_replicates, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      FASTOOD_CPU_DISPATCH(draw_counts)(in.replicate(r), in.scheme, in.count, in.size, out + r * in.count);
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CPU, m) {
  m.impl("ranking_statistics", TORCH_BOX(&ranking_statistics_cpu));
  m.impl("weighted_ranking_statistics", TORCH_BOX(&weighted_ranking_statistics_cpu));
  m.impl("resampling_counts", TORCH_BOX(&resampling_counts_cpu));
}

}  // namespace fastood::detection_metrics
