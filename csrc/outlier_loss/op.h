// Shared by the CPU and CUDA ops of the outlier losses: checked arguments and allocated outputs.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "../common/allocate.h"
#include "../common/logits.h"
#include "losses.h"

namespace fastood::outlier_loss {

inline OutlierLoss loss_of(int64_t loss) {
  STD_TORCH_CHECK(loss >= 0 && loss < kNumLosses, "loss must be in 0 ... ", kNumLosses - 1, ", got ", loss);
  return static_cast<OutlierLoss>(loss);
}

// An optional [N] argument in the form of the kernels, or null.
inline const void* row_values(const std::optional<Tensor>& values, const char* name, ScalarType dtype,
                              const LogitsInput& in) {
  if (!values.has_value()) {
    return nullptr;
  }
  check_dim(*values, name, 1);
  check_size(*values, name, in.num_rows);
  check_dtype(*values, name, dtype);
  check_same_device(*values, name, in.logits);
  STD_TORCH_CHECK(values->is_contiguous(), name, " must be contiguous");
  return values->const_data_ptr();
}

struct OutlierLossInput : LogitsInput {
  LossSettings settings;
  const int64_t* targets;  // [N], or null for background throughout
  const void* weight;      // [N] in the compute dtype, or null for all ones
  const void* uniform01;   // [N] in the compute dtype, or null

  OutlierLossInput(const Tensor& logits_, const std::optional<Tensor>& targets_, const std::optional<Tensor>& weight_,
                   const std::optional<Tensor>& uniform01_, int64_t loss, double background_weight, double margin_id,
                   double margin_background, int64_t num_reject, bool by_weight)
      : LogitsInput(logits_),
        settings{loss_of(loss), background_weight, margin_id, margin_background, num_reject, by_weight},
        targets(static_cast<const int64_t*>(row_values(targets_, "targets", ScalarType::Long, *this))),
        weight(row_values(weight_, "weight", compute(), *this)),
        uniform01(row_values(uniform01_, "uniform01", compute(), *this)) {
    STD_TORCH_CHECK(background_weight >= 0 && std::isfinite(background_weight),
                    "background_weight must be finite and at least 0, got ", background_weight);
    STD_TORCH_CHECK(std::isfinite(margin_id) && std::isfinite(margin_background), "margins must be finite, got ",
                    margin_id, " and ", margin_background);
    STD_TORCH_CHECK(num_classes <= kMaxClasses, "logits must have at most ", kMaxClasses, " classes, got ",
                    num_classes);
    const bool rejects = settings.loss == OutlierLoss::kRejectClass;
    STD_TORCH_CHECK(rejects ? num_reject >= 1 && num_reject < num_classes : num_reject == 0, "num_reject must be ",
                    rejects ? "at least 1 and below the number of logits" : "0 for this loss", ", got ", num_reject);
    STD_TORCH_CHECK(rejects == uniform01_.has_value(), "uniform01 is for the reject-class loss, and needed by it");
  }
};

// loss [], per_sample [N], row_stats [N, kRowStats] in the compute dtype; factors [kNumFactors] float64.
using OutlierLossForward = std::tuple<Tensor, Tensor, Tensor, Tensor>;

inline OutlierLossForward allocate_forward(const LogitsInput& in) {
  return {allocate_scalar(in.logits, in.compute()), allocate<1>(in.logits, {in.num_rows}, in.compute()),
          allocate<2>(in.logits, {in.num_rows, kRowStats}, in.compute()),
          allocate<1>(in.logits, {kNumFactors}, ScalarType::Double)};
}

inline Tensor allocate_gradient(const LogitsInput& in) {
  return allocate<2>(in.logits, {in.num_rows, in.num_classes}, in.logits.scalar_type());
}

inline void check_backward(const LogitsInput& in, const Tensor& grad_loss, const Tensor& row_stats,
                           const Tensor& factors) {
  STD_TORCH_CHECK(grad_loss.numel() == 1, "grad_loss must have one element, got ", grad_loss.numel());
  check_dtype(grad_loss, "grad_loss", in.compute());
  check_same_device(grad_loss, "grad_loss", in.logits);
  check_dim(row_stats, "row_stats", 2);
  check_size(row_stats, "row_stats", in.num_rows);
  check_dtype(row_stats, "row_stats", in.compute());
  check_same_device(row_stats, "row_stats", in.logits);
  STD_TORCH_CHECK(row_stats.size(1) == kRowStats && row_stats.is_contiguous(), "row_stats must be contiguous [N, ",
                  int64_t{kRowStats}, "]");
  check_dim(factors, "factors", 1);
  check_size(factors, "factors", kNumFactors);
  check_dtype(factors, "factors", ScalarType::Double);
  check_same_device(factors, "factors", in.logits);
  STD_TORCH_CHECK(factors.is_contiguous(), "factors must be contiguous");
}

}  // namespace fastood::outlier_loss
