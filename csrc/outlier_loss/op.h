// What cpu and cuda share of the uniformity op: the arguments, checked once, and the outputs, allocated once.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/logits.h"
#include "math.h"

namespace fastood {

struct UniformityInput : LogitsInput {
  const void* weight;  // [N] in the compute dtype, or null for all ones

  UniformityInput(const Tensor& logits_, const std::optional<Tensor>& weight_) : LogitsInput(logits_), weight(nullptr) {
    if (weight_.has_value()) {
      check_dim(*weight_, "weight", 1);
      check_size(*weight_, "weight", num_rows);
      check_dtype(*weight_, "weight", compute());
      check_same_device(*weight_, "weight", logits);
      STD_TORCH_CHECK(weight_->is_contiguous(), "weight must be contiguous");
      weight = weight_->const_data_ptr();
    }
  }
};

// loss [], per_sample [N], row_stats [N, kRowStats], all in the compute dtype.
using UniformityForward = std::tuple<Tensor, Tensor, Tensor>;

inline UniformityForward empty_uniformity_forward(const UniformityInput& in) {
  const ScalarType dtype = compute_dtype(in.logits.scalar_type());
  return {torch::stable::new_empty(in.logits, {}, dtype), torch::stable::new_empty(in.logits, {in.num_rows}, dtype),
          torch::stable::new_empty(in.logits, {in.num_rows, kRowStats}, dtype)};
}

inline void check_backward(const UniformityInput& in, const Tensor& grad_loss, const Tensor& row_stats) {
  const ScalarType dtype = compute_dtype(in.logits.scalar_type());
  STD_TORCH_CHECK(grad_loss.numel() == 1, "grad_loss must have one element, got ", grad_loss.numel());
  check_dtype(grad_loss, "grad_loss", dtype);
  check_same_device(grad_loss, "grad_loss", in.logits);
  check_dim(row_stats, "row_stats", 2);
  check_size(row_stats, "row_stats", in.num_rows);
  check_dtype(row_stats, "row_stats", dtype);
  check_same_device(row_stats, "row_stats", in.logits);
  STD_TORCH_CHECK(row_stats.size(1) == kRowStats && row_stats.is_contiguous(), "row_stats must be contiguous [N, ",
                  kRowStats, "]");
}

}  // namespace fastood
