// Shared by the CPU and CUDA ops of the detection statistics: checked arguments and allocated outputs.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <optional>
#include <vector>

#include "../common/allocate.h"
#include "../common/checks.h"
#include "math.h"
#include "random.h"

namespace fastood::detection_metrics {

inline void check_rows(const Tensor& tensor, const char* name, const Tensor& reference) {
  check_dim(tensor, name, 2);
  check_same_device(tensor, name, reference);
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(tensor.size(1) <= kMaxCount, name, " must have at most ", kMaxCount, " columns, got ",
                  tensor.size(1));
}

// An int64 number per row of `rows`, or null.
inline const int64_t* per_row(const std::optional<Tensor>& numbers, const char* name, const Tensor& rows) {
  if (!numbers.has_value()) {
    return nullptr;
  }
  check_dim(*numbers, name, 1);
  check_size(*numbers, name, rows.size(0));
  check_dtype(*numbers, name, ScalarType::Long);
  check_same_device(*numbers, name, rows);
  STD_TORCH_CHECK(numbers->is_contiguous(), name, " must be contiguous");
  return static_cast<const int64_t*>(numbers->const_data_ptr());
}

inline ScalarType key_type(const Tensor& scores) {
  switch (scores.scalar_type()) {
    case ScalarType::Double:
      return ScalarType::Long;
    case ScalarType::Float:
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return ScalarType::Int;
    default:
      STD_TORCH_CHECK(false, "scores must be float64, float32, bfloat16 or float16, got ",
                      torch::headeronly::toString(scores.scalar_type()));
  }
}

struct SortInput {
  Tensor scores;          // [A, N]
  const int64_t* counts;  // [A] or null

  SortInput(const Tensor& scores_, const std::optional<Tensor>& counts_) : scores(scores_) {
    check_rows(scores, "scores", scores);
    counts = per_row(counts_, "counts", scores);
  }

  int64_t num_rows() const { return scores.size(0); }
  int64_t num_columns() const { return scores.size(1); }
  Tensor empty_keys() const { return allocate(scores, std::array{num_rows(), num_columns()}, key_type(scores)); }
};

inline void check_keys(const Tensor& id_keys, const Tensor& ood_keys) {
  check_rows(id_keys, "id_keys", id_keys);
  check_rows(ood_keys, "ood_keys", id_keys);
  STD_TORCH_CHECK(id_keys.scalar_type() == ScalarType::Int || id_keys.scalar_type() == ScalarType::Long,
                  "id_keys must be int32 or int64, got ", torch::headeronly::toString(id_keys.scalar_type()));
  check_dtype(ood_keys, "ood_keys", id_keys.scalar_type());
}

inline void check_rates(const std::vector<double>& tpr) {
  for (const double rate : tpr) {
    STD_TORCH_CHECK(rate > 0 && rate <= 1, "tpr must be above 0 and at most 1, got ", rate);
  }
}

struct RankingInput {
  Tensor id_keys;            // [A, N]
  Tensor ood_keys;           // [B, M]
  const int64_t* id_row;     // [B], or null: the same row, or the only one
  const int64_t* id_count;   // [A] or null
  const int64_t* ood_count;  // [B] or null
  std::vector<double> tpr;

  RankingInput(const Tensor& id_keys_, const Tensor& ood_keys_, const std::optional<Tensor>& id_row_,
               const std::optional<Tensor>& id_count_, const std::optional<Tensor>& ood_count_,
               std::vector<double> tpr_)
      : id_keys(id_keys_), ood_keys(ood_keys_), tpr(std::move(tpr_)) {
    check_keys(id_keys, ood_keys);
    check_rates(tpr);
    id_row = per_row(id_row_, "id_row", ood_keys);
    id_count = per_row(id_count_, "id_count", id_keys);
    ood_count = per_row(ood_count_, "ood_count", ood_keys);
    STD_TORCH_CHECK(id_row != nullptr || num_id_rows() == 1 || num_id_rows() == num_pairs(),
                    "id_keys must have one row or ", num_pairs(), ", like ood_keys, unless id_row says which, got ",
                    num_id_rows());
  }

  int64_t num_id_rows() const { return id_keys.size(0); }
  int64_t num_pairs() const { return ood_keys.size(0); }
  Tensor empty_statistics() const {
    const int64_t columns = num_statistics(static_cast<int64_t>(tpr.size()));
    return allocate(id_keys, std::array{num_pairs(), columns}, ScalarType::Double);
  }
};

// One pair of rows and R weights of each score, or of one class alone.
struct WeightedInput {
  Tensor id_keys;             // [1, N]
  Tensor ood_keys;            // [1, M]
  const int32_t* id_weight;   // [R, N], or null: all 1
  const int32_t* ood_weight;  // [R, M], or null
  int64_t num_replicates;     // R
  std::vector<double> tpr;

  WeightedInput(const Tensor& id_keys_, const Tensor& ood_keys_, const std::optional<Tensor>& id_weight_,
                const std::optional<Tensor>& ood_weight_, std::vector<double> tpr_)
      : id_keys(id_keys_), ood_keys(ood_keys_), tpr(std::move(tpr_)) {
    check_keys(id_keys, ood_keys);
    check_rates(tpr);
    STD_TORCH_CHECK(id_keys.size(0) == 1 && ood_keys.size(0) == 1, "id_keys and ood_keys must have one row each, got ",
                    id_keys.size(0), " and ", ood_keys.size(0));
    STD_TORCH_CHECK(id_weight_.has_value() || ood_weight_.has_value(), "id_weight or ood_weight must be given");
    num_replicates =
        id_weight_.has_value() ? matrix_rows(*id_weight_, "id_weight") : matrix_rows(*ood_weight_, "ood_weight");
    id_weight = weights_of(id_weight_, "id_weight", id_keys);
    ood_weight = weights_of(ood_weight_, "ood_weight", ood_keys);
  }

  Tensor empty_statistics() const {
    const int64_t columns = num_statistics(static_cast<int64_t>(tpr.size()));
    return allocate(id_keys, std::array{num_replicates, columns}, ScalarType::Double);
  }

 private:
  const int32_t* weights_of(const std::optional<Tensor>& weights, const char* name, const Tensor& keys) const {
    if (!weights.has_value()) {
      return nullptr;
    }
    check_rows(*weights, name, keys);
    check_dtype(*weights, name, ScalarType::Int);
    STD_TORCH_CHECK(weights->size(0) == num_replicates && weights->size(1) == keys.size(1), name, " must be [",
                    num_replicates, ", ", keys.size(1), "], got [", weights->size(0), ", ", weights->size(1), "]");
    return static_cast<const int32_t*>(weights->const_data_ptr());
  }
};

struct CountsInput {
  Resampling scheme;
  int64_t num_replicates;
  int64_t count;
  int64_t size;
  RandomStream first;

  CountsInput(const Tensor& counts, int64_t seed, int64_t stream, int64_t first_replicate, int64_t scheme_,
              int64_t size_)
      : scheme(static_cast<Resampling>(scheme_)), num_replicates(0), count(0), size(size_) {
    constexpr int64_t kWords = int64_t{1} << 32;
    check_rows(counts, "counts", counts);
    num_replicates = counts.size(0);
    count = counts.size(1);
    check_dtype(counts, "counts", ScalarType::Int);
    STD_TORCH_CHECK(scheme_ >= 0 && scheme_ <= static_cast<int64_t>(Resampling::kSubset),
                    "scheme must be 0, 1 or 2, got ", scheme_);
    STD_TORCH_CHECK(stream >= 0 && stream < kWords, "stream must be in [0, 2^32), got ", stream);
    STD_TORCH_CHECK(first_replicate >= 0 && first_replicate <= kWords - num_replicates,
                    "replicates must be in [0, 2^32), got ", first_replicate, " and ", num_replicates, " from there");
    STD_TORCH_CHECK(scheme != Resampling::kSubset || (size >= 0 && size <= count), "size must be in [0, ", count,
                    "], got ", size);
    first = {static_cast<uint64_t>(seed), static_cast<uint32_t>(first_replicate), static_cast<uint32_t>(stream)};
  }

  RandomStream replicate(int64_t r) const {
    return {first.seed, first.replicate + static_cast<uint32_t>(r), first.stream};
  }
};

}  // namespace fastood::detection_metrics
