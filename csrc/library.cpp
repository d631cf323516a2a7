// All op schemas, and the Python module `fastood._C`.
//
// The ops keep to the LibTorch stable ABI: one build runs under any torch from 2.11 on, with CUDA or without.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include "common/cpu_capability.h"

STABLE_TORCH_LIBRARY(fastood, m) {
  // Losses of mixed batches (outlier_loss/losses.h): -> (loss, per_sample [N], row_stats [N, 5], factors [4])
  m.def(
      "outlier_loss(Tensor logits, Tensor? targets, Tensor? weight, Tensor? uniform01, int loss, "
      "float background_weight, float margin_id, float margin_background, int num_reject, bool by_weight) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "_outlier_loss_backward(Tensor grad_loss, Tensor logits, Tensor row_stats, Tensor factors, int loss) -> Tensor");
  // -> (loss, per_sample [N], grad_logits [N, K]) in one pass, for callers without autograd
  m.def(
      "outlier_loss_value_and_grad(Tensor logits, Tensor? targets, Tensor? weight, Tensor? uniform01, int loss, "
      "float background_weight, float margin_id, float margin_background, int num_reject, bool by_weight) "
      "-> (Tensor, Tensor, Tensor)");

  // Detection scores of a mask (logit_scores/math.h): -> [S, N]
  m.def("logit_scores(Tensor logits, int scores, int num_reject, float gen_gamma, int gen_top) -> Tensor");

  // Mahalanobis logits (mahalanobis/cpu.h): -> (logits [N, K], residual [N, d], whitened_means [K, d], nearest [N])
  m.def("mahalanobis_logits(Tensor features, Tensor means, Tensor scale_tril) -> (Tensor, Tensor, Tensor, Tensor)");
  // -> the gradients of features, means and scale_tril
  m.def(
      "_mahalanobis_logits_backward(Tensor grad, Tensor residual, Tensor whitened_means, Tensor nearest, Tensor "
      "scale_tril) -> (Tensor, Tensor, Tensor)");

  // The nearest key of the same class, of queries and keys sorted by class (class_l1_nearest/math.h): -> (distance [M],
  // index [M])
  m.def(
      "class_l1_nearest(Tensor query, Tensor query_classes, Tensor query_order, Tensor keys, Tensor key_classes, "
      "Tensor "
      "key_order) -> (Tensor, Tensor)");

  // Background pool (background_pool/layout.h): first touch of its memory
  m.def("background_pool_fill(Tensor(a!) state, float value) -> ()");
  // Plain sums of p, w and w^2 -> [3]
  m.def("background_pool_sums(Tensor omega, float epsilon) -> Tensor");
  m.def("background_pool_build(Tensor omega, Tensor(a!) masses, Tensor(b!) stats, float epsilon) -> ()");
  // Supplementary eq. 11 and 12: -> (index [B], importance [B])
  m.def(
      "background_pool_draw(Tensor omega, Tensor masses, Tensor stats, Tensor uniform, float epsilon) -> (Tensor, "
      "Tensor)");
  m.def("background_pool_find(Tensor omega, Tensor masses, Tensor stats, Tensor target, float epsilon) -> Tensor");
  m.def("background_pool_importance(Tensor omega, Tensor stats, Tensor index, float epsilon) -> Tensor");
  // One step of ascent on the weighted loss of a batch -> status [2]
  m.def(
      "background_pool_ascend(Tensor(a!) omega, Tensor(b!) velocity, Tensor(c!) masses, Tensor(d!) stats, Tensor "
      "index, Tensor loss, Tensor? shared, float epsilon, float momentum, float lr, bool sparse) -> Tensor");

  // Detection statistics of sorted scores (detection_metrics/keys.h, math.h): integer keys -> [A, N]
  m.def("sort_scores(Tensor scores, Tensor? counts) -> Tensor");
  // -> [B, 4 + 4 T], the columns of Statistic
  m.def(
      "ranking_statistics(Tensor id_keys, Tensor ood_keys, Tensor? id_row, Tensor? id_count, Tensor? ood_count, "
      "float[] tpr) -> Tensor");
  // Statistics of one pair under R weightings of its scores -> [R, 4 + 4 T]
  m.def(
      "weighted_ranking_statistics(Tensor id_keys, Tensor ood_keys, Tensor? id_weight, Tensor? ood_weight, float[] "
      "tpr) "
      "-> Tensor");
  // Counts of each sample in R resampled sets (detection_metrics/random.h)
  m.def("resampling_counts(Tensor(a!) counts, int seed, int stream, int first_replicate, int scheme, int size) -> ()");

  // Gather, crop, flip and normalise stored images (image_augment/math.h): -> [B, C, H, W]
  m.def(
      "augment_images(Tensor images, Tensor index, Tensor rows, Tensor columns, Tensor flip, int padding, float[] "
      "mean, float[] std, ScalarType dtype, bool channels_last) -> Tensor");
}

#if !FASTOOD_WITH_CUDA
namespace {

// Instead of the dispatcher's "Could not run ... with arguments from the 'CUDA' backend".
void no_cuda_kernels(StableIValue*, uint64_t, uint64_t) {
  STD_TORCH_CHECK(false, "the tensors are on a CUDA device, but this fastood was built without CUDA kernels (",
                  FASTOOD_CUDA_REASON, "): reinstall it with FASTOOD_CUDA=1, which needs nvcc");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CUDA, m) {
  m.impl("outlier_loss", &no_cuda_kernels);
  m.impl("_outlier_loss_backward", &no_cuda_kernels);
  m.impl("outlier_loss_value_and_grad", &no_cuda_kernels);
  m.impl("logit_scores", &no_cuda_kernels);
  m.impl("mahalanobis_logits", &no_cuda_kernels);
  m.impl("_mahalanobis_logits_backward", &no_cuda_kernels);
  m.impl("class_l1_nearest", &no_cuda_kernels);
  m.impl("background_pool_fill", &no_cuda_kernels);
  m.impl("background_pool_sums", &no_cuda_kernels);
  m.impl("background_pool_build", &no_cuda_kernels);
  m.impl("background_pool_draw", &no_cuda_kernels);
  m.impl("background_pool_find", &no_cuda_kernels);
  m.impl("background_pool_importance", &no_cuda_kernels);
  m.impl("background_pool_ascend", &no_cuda_kernels);
  m.impl("sort_scores", &no_cuda_kernels);
  m.impl("ranking_statistics", &no_cuda_kernels);
  m.impl("weighted_ranking_statistics", &no_cuda_kernels);
  m.impl("resampling_counts", &no_cuda_kernels);
  m.impl("augment_images", &no_cuda_kernels);
}
#endif

namespace {

namespace py = pybind11;

py::dict build_info() {
  py::dict info;
  info["version"] = FASTOOD_VERSION;
  info["cuda"] = static_cast<bool>(FASTOOD_WITH_CUDA);
  info["cuda_architectures"] = FASTOOD_CUDA_ARCHITECTURES;
  info["cuda_compiler"] = FASTOOD_CUDA_COMPILER;
  info["cuda_driver"] = FASTOOD_CUDA_DRIVER;
  info["cuda_reason"] = FASTOOD_CUDA_REASON;
  info["compiler"] = FASTOOD_CXX_COMPILER;
  info["target_torch"] = FASTOOD_TARGET_TORCH;
  info["cpu_capability"] = fastood::cpu_capability_name();
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of fastood. Importing it registers torch.ops.fastood.";
  m.def("build_info", &build_info, "Return how this build was made: version, CUDA, compilers, torch.");
}
