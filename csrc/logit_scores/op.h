// Shared by the CPU and CUDA ops of the detection scores: checked arguments and the allocated output.
#pragma once

#include <array>

#include "../common/allocate.h"
#include "../common/logits.h"
#include "math.h"

namespace fastood::logit_scores {

struct LogitScoresInput : LogitsInput {
  ScoreSettings settings;

  LogitScoresInput(const Tensor& logits_, int64_t scores, int64_t num_reject, double gen_gamma, int64_t gen_top)
      : LogitsInput(logits_), settings{scores, num_reject, gen_gamma, gen_top} {
    STD_TORCH_CHECK(scores > 0 && scores < int64_t{1} << kNumScores, "scores must be a mask of ", kNumScores,
                    " bits, one of them set, got ", scores);
    STD_TORCH_CHECK(num_reject >= 0 && num_reject < num_classes, "num_reject must be at least 0 and below ",
                    num_classes, ", the number of logits, got ", num_reject);
    STD_TORCH_CHECK(num_reject > 0 || !settings.wants(Score::kReject), "the reject score needs reject classes");
    STD_TORCH_CHECK(gen_gamma > 0, "gen_gamma must be above 0, got ", gen_gamma);
    STD_TORCH_CHECK(gen_top >= 0, "gen_top must be at least 0, got ", gen_top);
  }

  // One line per score of the mask: [S, N].
  Tensor empty_scores() const {
    return allocate(logits, std::array<int64_t, 2>{settings.num_scores(), num_rows}, compute());
  }
};

}  // namespace fastood::logit_scores
