// torch.ops.fastood.logit_scores on CUDA: checks, allocation, device, stream.
#include <torch/csrc/stable/library.h>

#include "../common/cuda_op.h"
#include "cuda.h"
#include "op.h"

namespace fastood::logit_scores {
namespace {

Tensor logit_scores_cuda(const Tensor& logits, int64_t scores, int64_t num_reject, double gen_gamma, int64_t gen_top) {
  const LogitScoresInput in(logits, scores, num_reject, gen_gamma, gen_top);
  const torch::stable::accelerator::DeviceGuard guard(in.logits.get_device_index());
  Tensor result = in.empty_scores();
  LogitScoresParams params{};
  params.type = logit_type(in.logits);
  params.settings = in.settings;
  params.logits = in.logits.const_data_ptr();
  params.scores = result.mutable_data_ptr();
  params.num_rows = in.num_rows;
  params.num_classes = in.num_classes - num_reject;
  params.row_stride = in.row_stride;
  check_launch(launch_logit_scores(params, current_cuda_stream(in.logits.get_device_index())), "logit_scores");
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CUDA, m) {
  m.impl("logit_scores", TORCH_BOX(&logit_scores_cuda));
}

}  // namespace fastood::logit_scores
