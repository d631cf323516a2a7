// torch.ops.fastood.weighted_uniformity and its backward on CUDA: checks, allocation, device, stream.
#include "../common/cuda_op.h"
#include "cuda.h"
#include "op.h"

namespace fastood {
namespace {

UniformityParams params_of(const UniformityInput& in) {
  UniformityParams params{};
  params.type = logit_type(in.logits);
  params.logits = in.logits.const_data_ptr();
  params.weight = in.weight;
  params.num_rows = in.num_rows;
  params.num_classes = in.num_classes;
  params.row_stride = in.row_stride;
  return params;
}

UniformityForward weighted_uniformity_cuda(const Tensor& logits, const std::optional<Tensor>& weight, bool by_weight) {
  const UniformityInput in(logits, weight);
  const torch::stable::accelerator::DeviceGuard guard(in.logits.get_device_index());
  UniformityForward out = empty_uniformity_forward(in);
  UniformityParams params = params_of(in);
  params.loss = std::get<0>(out).mutable_data_ptr();
  params.per_sample = std::get<1>(out).mutable_data_ptr();
  params.row_stats = std::get<2>(out).mutable_data_ptr();
  params.by_weight = by_weight;
  check_launch(launch_uniformity_forward(params, current_cuda_stream(in.logits.get_device_index())),
               "weighted_uniformity");
  return out;
}

Tensor weighted_uniformity_backward_cuda(const Tensor& grad_loss, const Tensor& logits, const Tensor& row_stats) {
  const UniformityInput in(logits, std::nullopt);
  check_backward(in, grad_loss, row_stats);
  const torch::stable::accelerator::DeviceGuard guard(in.logits.get_device_index());
  Tensor grad_logits = torch::stable::new_empty(in.logits, {in.num_rows, in.num_classes});
  UniformityParams params = params_of(in);
  params.row_stats = row_stats.mutable_data_ptr();
  params.grad_loss = grad_loss.const_data_ptr();
  params.grad_logits = grad_logits.mutable_data_ptr();
  check_launch(launch_uniformity_backward(params, current_cuda_stream(in.logits.get_device_index())),
               "_weighted_uniformity_backward");
  return grad_logits;
}

std::tuple<Tensor, Tensor, Tensor> weighted_uniformity_value_and_grad_cuda(const Tensor& logits,
                                                                           const std::optional<Tensor>& weight,
                                                                           bool by_weight) {
  auto [loss, per_sample, row_stats] = weighted_uniformity_cuda(logits, weight, by_weight);
  const Tensor one = torch::stable::full({}, 1.0, loss.scalar_type(), std::nullopt, loss.device());
  return {loss, per_sample, weighted_uniformity_backward_cuda(one, logits, row_stats)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CUDA, m) {
  m.impl("weighted_uniformity", TORCH_BOX(&weighted_uniformity_cuda));
  m.impl("_weighted_uniformity_backward", TORCH_BOX(&weighted_uniformity_backward_cuda));
  m.impl("weighted_uniformity_value_and_grad", TORCH_BOX(&weighted_uniformity_value_and_grad_cuda));
}

}  // namespace fastood
