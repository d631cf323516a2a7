// torch.ops.fastood.outlier_loss and its backward on CUDA: checks, allocation, device, stream. No call synchronises with
// the device, so that values are not checked: a target of K or more makes its row, and with it the loss, NaN.
#include "../common/cuda_op.h"
#include "cuda.h"
#include "op.h"

namespace fastood::outlier_loss {
namespace {

OutlierLossParams params_of(const LogitsInput& in) {
  OutlierLossParams params{};
  params.type = logit_type(in.logits);
  params.logits = in.logits.const_data_ptr();
  params.num_rows = in.num_rows;
  params.num_classes = in.num_classes;
  params.row_stride = in.row_stride;
  return params;
}

OutlierLossForward outlier_loss_cuda(const Tensor& logits, const std::optional<Tensor>& targets,
                                     const std::optional<Tensor>& weight, const std::optional<Tensor>& uniform01,
                                     int64_t loss, double background_weight, double margin_id, double margin_background,
                                     int64_t num_reject, bool by_weight) {
  const OutlierLossInput in(logits, targets, weight, uniform01, loss, background_weight, margin_id, margin_background,
                            num_reject, by_weight);
  const torch::stable::accelerator::DeviceGuard guard(in.logits.get_device_index());
  OutlierLossForward out = allocate_forward(in);
  const Tensor workspace =
      allocate<1>(in.logits, {outlier_loss_workspace_bytes(in.num_rows, in.num_classes)}, ScalarType::Byte);
  OutlierLossParams params = params_of(in);
  params.settings = in.settings;
  params.targets = in.targets;
  params.weight = in.weight;
  params.uniform01 = in.uniform01;
  params.loss = std::get<0>(out).mutable_data_ptr();
  params.per_sample = std::get<1>(out).mutable_data_ptr();
  params.row_stats = std::get<2>(out).mutable_data_ptr();
  params.factors = static_cast<double*>(std::get<3>(out).mutable_data_ptr());
  params.workspace = workspace.mutable_data_ptr();
  check_launch(launch_outlier_loss_forward(params, current_cuda_stream(in.logits.get_device_index())), "outlier_loss");
  return out;
}

Tensor outlier_loss_backward_cuda(const Tensor& grad_loss, const Tensor& logits, const Tensor& row_stats,
                                  const Tensor& factors, int64_t loss) {
  const LogitsInput in(logits);
  check_backward(in, grad_loss, row_stats, factors);
  const torch::stable::accelerator::DeviceGuard guard(in.logits.get_device_index());
  Tensor grad_logits = allocate_gradient(in);
  OutlierLossParams params = params_of(in);
  params.settings.loss = loss_of(loss);
  params.row_stats = row_stats.mutable_data_ptr();
  params.factors = static_cast<double*>(factors.mutable_data_ptr());
  params.grad_loss = grad_loss.const_data_ptr();
  params.grad_logits = grad_logits.mutable_data_ptr();
  check_launch(launch_outlier_loss_backward(params, current_cuda_stream(in.logits.get_device_index())),
               "_outlier_loss_backward");
  return grad_logits;
}

std::tuple<Tensor, Tensor, Tensor> outlier_loss_value_and_grad_cuda(
    const Tensor& logits, const std::optional<Tensor>& targets, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& uniform01, int64_t loss, double background_weight, double margin_id,
    double margin_background, int64_t num_reject, bool by_weight) {
  auto [value, per_sample, row_stats, factors] = outlier_loss_cuda(
      logits, targets, weight, uniform01, loss, background_weight, margin_id, margin_background, num_reject, by_weight);
  const Tensor one = torch::stable::full({}, 1.0, value.scalar_type(), std::nullopt, value.device());
  return {value, per_sample, outlier_loss_backward_cuda(one, logits, row_stats, factors, loss)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CUDA, m) {
  m.impl("outlier_loss", TORCH_BOX(&outlier_loss_cuda));
  m.impl("_outlier_loss_backward", TORCH_BOX(&outlier_loss_backward_cuda));
  m.impl("outlier_loss_value_and_grad", TORCH_BOX(&outlier_loss_value_and_grad_cuda));
}

}  // namespace fastood::outlier_loss
