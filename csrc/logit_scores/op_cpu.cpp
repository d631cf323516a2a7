// torch.ops.fastood.logit_scores on the CPU.
#include <torch/csrc/stable/library.h>

#include "../common/cpu_rows.h"
#include "cpu.h"
#include "op.h"

namespace fastood::logit_scores {
namespace {

Tensor logit_scores_cpu(const Tensor& logits, int64_t scores, int64_t num_reject, double gen_gamma, int64_t gen_top) {
  const LogitScoresInput in(logits, scores, num_reject, gen_gamma, gen_top);
  const Tensor result = in.empty_scores();
  dispatch_logits(in.logits, [&]<typename Logit>() {
    const auto* first = static_cast<const Logit*>(in.logits.const_data_ptr());
    auto* out = static_cast<Compute<Logit>*>(result.mutable_data_ptr());
    parallel_rows(in, [&](int64_t begin, int64_t end) {
      const ScoreRows<Logit> rows{first + begin * in.row_stride, in.row_stride, end - begin, in.num_classes};
      FASTOOD_CPU_DISPATCH(logit_scores<Logit>)(rows, in.settings, out + begin, in.num_rows);
    });
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CPU, m) {
  m.impl("logit_scores", TORCH_BOX(&logit_scores_cpu));
}

}  // namespace fastood::logit_scores
