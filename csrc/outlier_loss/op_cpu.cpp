// torch.ops.fastood.outlier_loss and its backward on the CPU.
#include <algorithm>

#include "../common/cpu_rows.h"
#include "../common/huge_pages.h"
#include "cpu.h"
#include "op.h"

namespace fastood::outlier_loss {
namespace {

// Rows whose logits and gradient stay in the level-1 cache between the two passes of value_and_grad.
constexpr int64_t kBlockLogits = 4096;
constexpr int64_t kMaxBlockRows = 128;

template <typename Logit>
LossRows<Logit> rows_of(const OutlierLossInput& in) {
  using T = Compute<Logit>;
  return {static_cast<const Logit*>(in.logits.const_data_ptr()),
          in.row_stride,
          in.num_rows,
          in.num_classes,
          in.targets,
          static_cast<const T*>(in.weight),
          static_cast<const T*>(in.uniform01)};
}

void check_targets(const OutlierLossInput& in) {
  const int64_t limit = in.num_classes - in.settings.num_reject;
  if (in.targets == nullptr || in.settings.loss == OutlierLoss::kMagnitude) {
    return;
  }
  int64_t largest = -1;
  for (int64_t i = 0; i < in.num_rows; ++i) {
    largest = std::max(largest, in.targets[i]);
  }
  STD_TORCH_CHECK(largest < limit, "targets must be below K = ", limit, " (or negative: background), got ", largest);
}

// On one thread, so that results do not depend on the number of threads. Without per_sample, the divisors alone.
template <typename Logit>
void sum_rows(const LossRows<Logit>& rows, const LossSettings& settings, const Compute<Logit>* per_sample,
              double* factors) {
  RowTotals id;
  RowTotals background;
  FASTOOD_CPU_DISPATCH(outlier_loss_totals<Logit>)(rows, settings.by_weight, per_sample, &id, &background);
  store_factors(settings, id, background, factors);
}

template <typename Logit, typename T = Compute<Logit>>
void forward(const OutlierLossInput& in, const OutlierLossForward& out) {
  const LossRows<Logit> rows = rows_of<Logit>(in);
  auto* per_sample = static_cast<T*>(std::get<1>(out).mutable_data_ptr());
  auto* stats = static_cast<T*>(std::get<2>(out).mutable_data_ptr());
  auto* factors = static_cast<double*>(std::get<3>(out).mutable_data_ptr());
  parallel_rows(in, [&](int64_t begin, int64_t end) {
    FASTOOD_CPU_DISPATCH(outlier_loss_forward<Logit>)
    (rows.from(begin, end), in.settings, per_sample + begin, stats + kRowStats * begin);
  });
  sum_rows(rows, in.settings, per_sample, factors);
  *static_cast<T*>(std::get<0>(out).mutable_data_ptr()) = static_cast<T>(total_loss(in.settings, factors));
}

// The gradient of a row's target is written by the class in its statistics.
template <typename T>
void check_targets(const T* row_stats, int64_t num_rows, int64_t num_classes) {
  const T largest = static_cast<T>(num_classes - 1);
  for (int64_t i = 0; i < num_rows; ++i) {
    const T target = row_stats[kRowStats * i + kTarget];
    STD_TORCH_CHECK(target >= kNoTarget - 1 - largest && target <= largest,
                    "row_stats must be those of outlier_loss for these logits, got the target ", target, " in row ", i);
  }
}

template <typename Logit, typename T = Compute<Logit>>
void backward(const LogitsInput& in, OutlierLoss loss, const Tensor& grad_loss, const Tensor& row_stats,
              const Tensor& factors, const Tensor& grad_logits) {
  const LossRows<Logit> rows{static_cast<const Logit*>(in.logits.const_data_ptr()),
                             in.row_stride,
                             in.num_rows,
                             in.num_classes,
                             nullptr,
                             nullptr,
                             nullptr};
  const auto* stats = static_cast<const T*>(row_stats.const_data_ptr());
  check_targets(stats, in.num_rows, in.num_classes);
  const auto* factor = static_cast<const double*>(factors.const_data_ptr());
  const double upstream = *static_cast<const T*>(grad_loss.const_data_ptr());
  auto* grad = static_cast<Logit*>(grad_logits.mutable_data_ptr());
  parallel_rows(in, [&](int64_t begin, int64_t end) {
    FASTOOD_CPU_DISPATCH(outlier_loss_backward<Logit>)
    (rows.from(begin, end), loss, stats + kRowStats * begin, upstream * factor[kFactorId],
     upstream * factor[kFactorBackground], grad + begin * in.num_classes);
  });
}

// Forward and backward of a block of rows while its logits are in cache: one read and one write of memory.
template <typename Logit, typename T = Compute<Logit>>
void value_and_grad(const OutlierLossInput& in, const Tensor& loss, const Tensor& per_sample,
                    const Tensor& grad_logits) {
  const LossRows<Logit> rows = rows_of<Logit>(in);
  auto* losses = static_cast<T*>(per_sample.mutable_data_ptr());
  auto* grad = static_cast<Logit*>(grad_logits.mutable_data_ptr());
  double factors[kNumFactors];
  sum_rows<Logit>(rows, in.settings, nullptr, factors);
  const int64_t cached_rows = std::clamp<int64_t>(kBlockLogits / in.num_classes, 1, kMaxBlockRows);
  const int64_t block_rows = cached_rows < kRowTile ? cached_rows : cached_rows / kRowTile * kRowTile;
  parallel_rows(in, [&](int64_t begin, int64_t end) {
    T stats[kRowStats * kMaxBlockRows];
    for (int64_t i = begin; i < end; i += block_rows) {
      const LossRows<Logit> block = rows.from(i, std::min(i + block_rows, end));
      FASTOOD_CPU_DISPATCH(outlier_loss_forward<Logit>)(block, in.settings, losses + i, stats);
      FASTOOD_CPU_DISPATCH(outlier_loss_backward<Logit>)
      (block, in.settings.loss, stats, factors[kFactorId], factors[kFactorBackground], grad + i * in.num_classes);
    }
  });
  sum_rows(rows, in.settings, losses, factors);
  *static_cast<T*>(loss.mutable_data_ptr()) = static_cast<T>(total_loss(in.settings, factors));
}

Tensor allocate_gradient_cpu(const LogitsInput& in) {
  Tensor grad_logits = allocate_gradient(in);
  advise_huge_pages(grad_logits.mutable_data_ptr(), grad_logits.numel() * grad_logits.element_size());
  return grad_logits;
}

OutlierLossForward outlier_loss_cpu(const Tensor& logits, const std::optional<Tensor>& targets,
                                    const std::optional<Tensor>& weight, const std::optional<Tensor>& uniform01,
                                    int64_t loss, double background_weight, double margin_id, double margin_background,
                                    int64_t num_reject, bool by_weight) {
  const OutlierLossInput in(logits, targets, weight, uniform01, loss, background_weight, margin_id, margin_background,
                            num_reject, by_weight);
  check_targets(in);
  const OutlierLossForward out = allocate_forward(in);
  dispatch_logits(in.logits, [&]<typename Logit>() { forward<Logit>(in, out); });
  return out;
}

Tensor outlier_loss_backward_cpu(const Tensor& grad_loss, const Tensor& logits, const Tensor& row_stats,
                                 const Tensor& factors, int64_t loss) {
  const LogitsInput in(logits);
  check_backward(in, grad_loss, row_stats, factors);
  const Tensor grad_logits = allocate_gradient_cpu(in);
  dispatch_logits(in.logits, [&]<typename Logit>() {
    backward<Logit>(in, loss_of(loss), grad_loss, row_stats, factors, grad_logits);
  });
  return grad_logits;
}

std::tuple<Tensor, Tensor, Tensor> outlier_loss_value_and_grad_cpu(
    const Tensor& logits, const std::optional<Tensor>& targets, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& uniform01, int64_t loss, double background_weight, double margin_id,
    double margin_background, int64_t num_reject, bool by_weight) {
  const OutlierLossInput in(logits, targets, weight, uniform01, loss, background_weight, margin_id, margin_background,
                            num_reject, by_weight);
  check_targets(in);
  const Tensor value = allocate_scalar(in.logits, in.compute());
  const Tensor per_sample = allocate<1>(in.logits, {in.num_rows}, in.compute());
  const Tensor grad_logits = allocate_gradient_cpu(in);
  dispatch_logits(in.logits, [&]<typename Logit>() { value_and_grad<Logit>(in, value, per_sample, grad_logits); });
  return {value, per_sample, grad_logits};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CPU, m) {
  m.impl("outlier_loss", TORCH_BOX(&outlier_loss_cpu));
  m.impl("_outlier_loss_backward", TORCH_BOX(&outlier_loss_backward_cpu));
  m.impl("outlier_loss_value_and_grad", TORCH_BOX(&outlier_loss_value_and_grad_cpu));
}

}  // namespace fastood::outlier_loss
