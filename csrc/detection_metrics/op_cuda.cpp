// torch.ops.fastood.sort_scores, ranking_statistics, weighted_ranking_statistics and resampling_counts on CUDA: checks,
// allocation, device, stream. No call synchronises with the device, and all can be captured in a graph.
//
// Values are not checked, which would synchronise. A count of sort_scores is clamped to its row; a pair whose id_row or count
// is out of range, and a replicate with a negative weight or a sum of them above kMaxCount, has NaN statistics; those of
// keys that do not ascend are of no use, but nothing outside of the rows is read.
#include "../common/cuda_op.h"
#include "cuda.h"
#include "op.h"

namespace fastood::detection_metrics {
namespace {

using DeviceGuard = torch::stable::accelerator::DeviceGuard;

cudaStream_t stream_of(const Tensor& tensor) {
  return current_cuda_stream(tensor.get_device_index());
}

// Scratch as a tensor, of the caching allocator: it may be freed here while the kernels are still to run, on this stream.
template <typename T>
class Scratch {
 public:
  Scratch(const Tensor& like, int64_t count)
      : memory_(allocate(like, std::array{(count * static_cast<int64_t>(sizeof(T)) + 7) / 8}, ScalarType::Long)) {}
  T* get() const { return static_cast<T*>(memory_.mutable_data_ptr()); }

 private:
  Tensor memory_;
};

Tensor sort_scores_cuda(const Tensor& scores, const std::optional<Tensor>& counts) {
  const SortInput in(scores, counts);
  const DeviceGuard guard(scores.get_device_index());
  const Tensor keys = in.empty_keys();
  const Tensor unsorted = in.empty_keys();
  SortParams params{};
  params.type = logit_type(scores);
  params.scores = scores.const_data_ptr();
  params.counts = in.counts;
  params.num_rows = in.num_rows();
  params.num_columns = in.num_columns();
  params.unsorted = unsorted.mutable_data_ptr();
  params.keys = keys.mutable_data_ptr();
  check_launch(sort_scores_work_bytes(params, &params.work_bytes), "sort_scores");
  // At least one: CUB interprets null as a query for the size.
  const Scratch<char> work(scores, static_cast<int64_t>(params.work_bytes) + 1);
  params.work = work.get();
  check_launch(launch_sort_scores(params, stream_of(scores)), "sort_scores");
  return keys;
}

PairsParams pairs_of(const Tensor& id_keys, const Tensor& ood_keys) {
  PairsParams pairs{};
  pairs.wide = id_keys.scalar_type() == ScalarType::Long;
  pairs.id_keys = id_keys.const_data_ptr();
  pairs.ood_keys = ood_keys.const_data_ptr();
  pairs.num_id_rows = id_keys.size(0);
  pairs.id_columns = id_keys.size(1);
  pairs.num_pairs = ood_keys.size(0);
  pairs.ood_columns = ood_keys.size(1);
  return pairs;
}

// Calls launch(rates) for all rates, as many at a time as a launch takes.
template <typename Launch>
void for_rates(const std::vector<double>& tpr, const Launch& launch) {
  const auto num_rates = static_cast<int64_t>(tpr.size());
  for (int64_t first = 0; first < num_rates; first += kRatesPerLaunch) {
    Rates rates{};
    rates.first = first;
    rates.count = std::min(kRatesPerLaunch, num_rates - first);
    rates.num_rates = num_rates;
    std::copy_n(tpr.begin() + first, rates.count, rates.values);
    launch(rates);
  }
}

Tensor ranking_statistics_cuda(const Tensor& id_keys, const Tensor& ood_keys, const std::optional<Tensor>& id_row,
                               const std::optional<Tensor>& id_count, const std::optional<Tensor>& ood_count,
                               std::vector<double> tpr) {
  const RankingInput in(id_keys, ood_keys, id_row, id_count, ood_count, std::move(tpr));
  const DeviceGuard guard(id_keys.get_device_index());
  const cudaStream_t stream = stream_of(id_keys);
  const Tensor result = in.empty_statistics();
  auto* const statistics = static_cast<double*>(result.mutable_data_ptr());
  PairsParams pairs = pairs_of(id_keys, ood_keys);
  pairs.id_row = in.id_row;
  pairs.id_count = in.id_count;
  pairs.ood_count = in.ood_count;
  const Scratch<RankSums> tiles(id_keys, pairs.num_pairs * pairs.max_tiles());
  const auto num_rates = static_cast<int64_t>(in.tpr.size());
  check_launch(launch_ranking_areas(pairs, num_rates, tiles.get(), statistics, stream), "ranking_statistics");
  for_rates(in.tpr, [&](const Rates& rates) {
    check_launch(launch_ranking_rates(pairs, rates, statistics, stream), "ranking_statistics");
  });
  return result;
}

Tensor weighted_ranking_statistics_cuda(const Tensor& id_keys, const Tensor& ood_keys,
                                        const std::optional<Tensor>& id_weight, const std::optional<Tensor>& ood_weight,
                                        std::vector<double> tpr) {
  const WeightedInput in(id_keys, ood_keys, id_weight, ood_weight, std::move(tpr));
  const DeviceGuard guard(id_keys.get_device_index());
  const cudaStream_t stream = stream_of(id_keys);
  const Tensor result = in.empty_statistics();
  auto* const statistics = static_cast<double*>(result.mutable_data_ptr());
  const PairsParams pair = pairs_of(id_keys, ood_keys);
  const int64_t longer = std::max(pair.id_columns, pair.ood_columns);
  const Scratch<int32_t> ranks(id_keys, 3 * pair.ood_columns + 2 * pair.id_columns);
  const Scratch<int32_t> id_before(id_keys, in.num_replicates * (pair.id_columns + 1));
  const Scratch<int32_t> ood_before(id_keys, in.num_replicates * (pair.ood_columns + 1));
  const Scratch<int64_t> totals(id_keys, 2 * in.num_replicates);
  const Scratch<RankSums> tiles(id_keys, in.num_replicates * num_tiles(longer));
  WeightedParams params{};
  params.id_weight = in.id_weight;
  params.ood_weight = in.ood_weight;
  params.num_replicates = in.num_replicates;
  params.ranks = ranks.get();
  params.id_before = id_before.get();
  params.ood_before = ood_before.get();
  params.totals = totals.get();
  const auto num_rates = static_cast<int64_t>(in.tpr.size());
  check_launch(launch_weighted_areas(pair, params, num_rates, tiles.get(), statistics, stream),
               "weighted_ranking_statistics");
  for_rates(in.tpr, [&](const Rates& rates) {
    check_launch(launch_weighted_rates(pair, params, rates, statistics, stream), "weighted_ranking_statistics");
  });
  return result;
}

void resampling_counts_cuda(const Tensor& counts, int64_t seed, int64_t stream, int64_t first_replicate, int64_t scheme,
                            int64_t size) {
  const CountsInput in(counts, seed, stream, first_replicate, scheme, size);
  const DeviceGuard guard(counts.get_device_index());
  CountsParams params{};
  params.scheme = in.scheme;
  params.first = in.first;
  params.num_replicates = in.num_replicates;
  params.count = in.count;
  params.size = in.size;
  params.counts = static_cast<int32_t*>(counts.mutable_data_ptr());
  check_launch(launch_resampling_counts(params, stream_of(counts)), "resampling_counts");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CUDA, m) {
  m.impl("sort_scores", TORCH_BOX(&sort_scores_cuda));
  m.impl("ranking_statistics", TORCH_BOX(&ranking_statistics_cuda));
  m.impl("weighted_ranking_statistics", TORCH_BOX(&weighted_ranking_statistics_cuda));
  m.impl("resampling_counts", TORCH_BOX(&resampling_counts_cuda));
}

}  // namespace fastood::detection_metrics
