// torch.ops.fastood.weighted_uniformity and its backward on the CPU.
#include <algorithm>

#include "../common/cpu_rows.h"
#include "../common/huge_pages.h"
#include "cpu.h"
#include "math.h"
#include "op.h"

namespace fastood {
namespace {

// Rows whose logits and gradient stay in the level-1 cache between the two passes of value_and_grad.
constexpr int64_t kBlockLogits = 4096;
constexpr int64_t kMaxBlockRows = 128;

// Sums in float64 and in row order, so that the loss does not depend on the number of threads.
template <typename T>
double loss_divisor(const UniformityInput& in, bool by_weight) {
  if (!by_weight || in.weight == nullptr) {
    return static_cast<double>(in.num_rows);
  }
  const T* weight = static_cast<const T*>(in.weight);
  double sum = 0;
  for (int64_t i = 0; i < in.num_rows; ++i) {
    sum += weight[i];
  }
  return sum;
}

template <typename T>
T weighted_loss(const UniformityInput& in, const T* per_sample, double divisor) {
  const T* weight = static_cast<const T*>(in.weight);
  double sum = 0;
  for (int64_t i = 0; i < in.num_rows; ++i) {
    const double w = weight == nullptr ? 1.0 : weight[i];
    sum += w == 0 ? 0 : w * per_sample[i];
  }
  return static_cast<T>(divisor == 0 ? 0 : sum / divisor);
}

template <typename Logit, typename T = Compute<Logit>>
void forward(const UniformityInput& in, bool by_weight, const UniformityForward& out) {
  const auto* logits = static_cast<const Logit*>(in.logits.const_data_ptr());
  const auto* weight = static_cast<const T*>(in.weight);
  auto* per_sample = static_cast<T*>(std::get<1>(out).mutable_data_ptr());
  auto* stats = static_cast<T*>(std::get<2>(out).mutable_data_ptr());
  const double divisor = loss_divisor<T>(in, by_weight);
  parallel_rows(in, [&](int64_t begin, int64_t end) {
    FASTOOD_CPU_DISPATCH(uniformity_forward<Logit>)
    (logits + begin * in.row_stride, in.row_stride, end - begin, in.num_classes, per_sample + begin,
     stats + kRowStats * begin);
    FASTOOD_CPU_DISPATCH(uniformity_scale<T>)
    (weight == nullptr ? nullptr : weight + begin, end - begin, in.num_classes, divisor, stats + kRowStats * begin);
  });
  *static_cast<T*>(std::get<0>(out).mutable_data_ptr()) = weighted_loss<T>(in, per_sample, divisor);
}

template <typename Logit, typename T = Compute<Logit>>
void backward(const UniformityInput& in, const Tensor& grad_loss, const Tensor& row_stats, const Tensor& grad_logits) {
  const auto* logits = static_cast<const Logit*>(in.logits.const_data_ptr());
  const auto* stats = static_cast<const T*>(row_stats.const_data_ptr());
  const double upstream = *static_cast<const T*>(grad_loss.const_data_ptr());
  auto* grad = static_cast<Logit*>(grad_logits.mutable_data_ptr());
  parallel_rows(in, [&](int64_t begin, int64_t end) {
    FASTOOD_CPU_DISPATCH(uniformity_backward<Logit>)
    (logits + begin * in.row_stride, in.row_stride, end - begin, in.num_classes, stats + kRowStats * begin, upstream,
     grad + begin * in.num_classes);
  });
}

// Forward and backward of a block of rows while its logits are in cache: one read and one write of memory.
template <typename Logit, typename T = Compute<Logit>>
void value_and_grad(const UniformityInput& in, bool by_weight, const Tensor& loss, const Tensor& per_sample,
                    const Tensor& grad_logits) {
  const auto* logits = static_cast<const Logit*>(in.logits.const_data_ptr());
  const auto* weight = static_cast<const T*>(in.weight);
  auto* losses = static_cast<T*>(per_sample.mutable_data_ptr());
  auto* grad = static_cast<Logit*>(grad_logits.mutable_data_ptr());
  const double divisor = loss_divisor<T>(in, by_weight);
  const int64_t cached_rows = std::clamp<int64_t>(kBlockLogits / in.num_classes, 1, kMaxBlockRows);
  const int64_t block_rows = cached_rows < kRowTile ? cached_rows : cached_rows / kRowTile * kRowTile;
  parallel_rows(in, [&](int64_t begin, int64_t end) {
    T stats[kRowStats * kMaxBlockRows];
    for (int64_t i = begin; i < end; i += block_rows) {
      const int64_t rows = std::min(block_rows, end - i);
      const Logit* block = logits + i * in.row_stride;
      FASTOOD_CPU_DISPATCH(uniformity_forward<Logit>)
      (block, in.row_stride, rows, in.num_classes, losses + i, stats);
      FASTOOD_CPU_DISPATCH(uniformity_scale<T>)
      (weight == nullptr ? nullptr : weight + i, rows, in.num_classes, divisor, stats);
      FASTOOD_CPU_DISPATCH(uniformity_backward<Logit>)
      (block, in.row_stride, rows, in.num_classes, stats, 1.0, grad + i * in.num_classes);
    }
  });
  *static_cast<T*>(loss.mutable_data_ptr()) = weighted_loss<T>(in, losses, divisor);
}

Tensor empty_gradient(const UniformityInput& in) {
  Tensor grad_logits = torch::stable::new_empty(in.logits, {in.num_rows, in.num_classes});
  advise_huge_pages(grad_logits.mutable_data_ptr(), grad_logits.numel() * grad_logits.element_size());
  return grad_logits;
}

UniformityForward weighted_uniformity_cpu(const Tensor& logits, const std::optional<Tensor>& weight, bool by_weight) {
  const UniformityInput in(logits, weight);
  const UniformityForward out = empty_uniformity_forward(in);
  dispatch_logits(in.logits, [&]<typename Logit>() { forward<Logit>(in, by_weight, out); });
  return out;
}

Tensor weighted_uniformity_backward_cpu(const Tensor& grad_loss, const Tensor& logits, const Tensor& row_stats) {
  const UniformityInput in(logits, std::nullopt);
  check_backward(in, grad_loss, row_stats);
  const Tensor grad_logits = empty_gradient(in);
  dispatch_logits(in.logits, [&]<typename Logit>() { backward<Logit>(in, grad_loss, row_stats, grad_logits); });
  return grad_logits;
}

std::tuple<Tensor, Tensor, Tensor> weighted_uniformity_value_and_grad_cpu(const Tensor& logits,
                                                                          const std::optional<Tensor>& weight,
                                                                          bool by_weight) {
  const UniformityInput in(logits, weight);
  const ScalarType dtype = compute_dtype(in.logits.scalar_type());
  const Tensor loss = torch::stable::new_empty(in.logits, {}, dtype);
  const Tensor per_sample = torch::stable::new_empty(in.logits, {in.num_rows}, dtype);
  const Tensor grad_logits = empty_gradient(in);
  dispatch_logits(in.logits,
                  [&]<typename Logit>() { value_and_grad<Logit>(in, by_weight, loss, per_sample, grad_logits); });
  return {loss, per_sample, grad_logits};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CPU, m) {
  m.impl("weighted_uniformity", TORCH_BOX(&weighted_uniformity_cpu));
  m.impl("_weighted_uniformity_backward", TORCH_BOX(&weighted_uniformity_backward_cpu));
  m.impl("weighted_uniformity_value_and_grad", TORCH_BOX(&weighted_uniformity_value_and_grad_cpu));
}

}  // namespace fastood
