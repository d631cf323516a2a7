// The logits argument of every row kernel: [N, K] with adjacent columns and any row stride.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "checks.h"

namespace fastood {

// Losses and scores are computed and returned in float64 for float64 logits, in float32 for all others.
inline ScalarType compute_dtype(ScalarType logits) {
  return logits == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

[[noreturn]] inline void unsupported_logits(const Tensor& logits) {
  STD_TORCH_CHECK(false, "logits must be float64, float32, bfloat16 or float16, got ",
                  torch::headeronly::toString(logits.scalar_type()));
  std::abort();  // the check throws; the compiler cannot see that
}

struct LogitsInput {
  Tensor logits;
  int64_t num_rows;
  int64_t num_classes;
  int64_t row_stride;

  explicit LogitsInput(const Tensor& logits_) : logits(logits_), num_rows(0), num_classes(0), row_stride(0) {
    check_dim(logits, "logits", 2);
    num_rows = logits.size(0);
    num_classes = logits.size(1);
    STD_TORCH_CHECK(num_classes >= 1, "logits must have at least one class, got shape [", num_rows, ", 0]");
    if (num_classes > 1 && logits.stride(1) != 1) {
      logits = torch::stable::contiguous(logits);
    }
    row_stride = logits.stride(0);
  }

  ScalarType compute() const { return compute_dtype(logits.scalar_type()); }
};

}  // namespace fastood
