// All op schemas. The ops keep to the LibTorch stable ABI: one build runs under any torch from 2.11 on, with CUDA or without.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastood, m) {
  // Losses of mixed batches (outlier_loss/losses.h): -> (loss, per_sample [N], row_stats [N, 5], factors [4])
  m.def(
      "outlier_loss(Tensor logits, Tensor? targets, Tensor? weight, Tensor? uniform01, int loss, "
      "float background_weight, float margin_id, float margin_background, int num_reject, bool by_weight) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "_outlier_loss_backward(Tensor grad_loss, Tensor logits, Tensor row_stats, Tensor factors, int loss) -> Tensor");
  // -> (loss, per_sample [N], grad_logits [N, K]), for callers without autograd. On the CPU forward and backward of a block
  // of rows while it is in cache; on CUDA one after the other, each of which reads the logits
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
