// torch.ops.fastood.mahalanobis_logits and its backward on CUDA: allocation, device, stream.
//
// Values are not checked, because a check would synchronise with the device: a diagonal of L that is not finite and
// above 0 makes the logits NaN, and a `nearest` that is no class makes the gradients NaN.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/cuda_stream.h"
#include "cuda.h"
#include "op.h"

namespace fastood::mahalanobis {
namespace {

MahalanobisShape shape_of(const MahalanobisInput& in, int64_t num_samples, int64_t num_classes) {
  return {num_samples, num_classes, in.dim, in.dtype == ScalarType::Double, in.is_diagonal};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mahalanobis_logits_cuda(const Tensor& features, const Tensor& means,
                                                                   const Tensor& scale_tril) {
  const MahalanobisForwardInput in(features, means, scale_tril);
  const torch::stable::accelerator::DeviceGuard guard(in.features.get_device_index());
  const MahalanobisShape shape = shape_of(in, in.num_features, in.num_classes);
  Tensor logits = in.empty(in.num_features, in.num_classes);
  Tensor residual = in.empty(in.num_features, in.dim);
  Tensor whitened_means = in.empty(in.num_classes, in.dim);
  Tensor nearest = allocate<1>(in.features, {in.num_features}, ScalarType::Long);
  const Tensor workspace = allocate<1>(in.features, {mahalanobis_forward_workspace_bytes(shape)}, ScalarType::Byte);
  MahalanobisForwardParams params{};
  params.shape = shape;
  params.features = in.features.const_data_ptr();
  params.means = in.means.const_data_ptr();
  params.factor = in.scale_tril.const_data_ptr();
  params.logits = logits.mutable_data_ptr();
  params.residual = residual.mutable_data_ptr();
  params.whitened_means = whitened_means.mutable_data_ptr();
  params.nearest = static_cast<int64_t*>(nearest.mutable_data_ptr());
  params.workspace = workspace.mutable_data_ptr();
  check_launch(launch_mahalanobis_forward(params, current_cuda_stream(in.features.get_device_index())),
               "mahalanobis_logits");
  return {logits, residual, whitened_means, nearest};
}

std::tuple<Tensor, Tensor, Tensor> mahalanobis_logits_backward_cuda(const Tensor& grad, const Tensor& residual,
                                                                    const Tensor& whitened_means, const Tensor& nearest,
                                                                    const Tensor& scale_tril) {
  const MahalanobisBackwardInput in(grad, residual, whitened_means, nearest, scale_tril);
  const torch::stable::accelerator::DeviceGuard guard(in.residual.get_device_index());
  const MahalanobisShape shape = shape_of(in, in.num_features, in.num_classes);
  Tensor grad_features = in.empty_like_features();
  Tensor grad_means = in.empty_like_means();
  Tensor grad_scale_tril = in.empty_like_scale();
  const Tensor workspace = allocate<1>(in.residual, {mahalanobis_backward_workspace_bytes(shape)}, ScalarType::Byte);
  MahalanobisBackwardParams params{};
  params.shape = shape;
  params.grad = in.grad.const_data_ptr();
  params.residual = in.residual.const_data_ptr();
  params.whitened_means = in.whitened_means.const_data_ptr();
  params.nearest = static_cast<const int64_t*>(in.nearest.const_data_ptr());
  params.factor = in.scale_tril.const_data_ptr();
  params.grad_features = grad_features.mutable_data_ptr();
  params.grad_means = grad_means.mutable_data_ptr();
  params.grad_factor = grad_scale_tril.mutable_data_ptr();
  params.workspace = workspace.mutable_data_ptr();
  check_launch(launch_mahalanobis_backward(params, current_cuda_stream(in.residual.get_device_index())),
               "_mahalanobis_logits_backward");
  return {grad_features, grad_means, grad_scale_tril};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CUDA, m) {
  m.impl("mahalanobis_logits", TORCH_BOX(&mahalanobis_logits_cuda));
  m.impl("_mahalanobis_logits_backward", TORCH_BOX(&mahalanobis_logits_backward_cuda));
}

}  // namespace fastood::mahalanobis
