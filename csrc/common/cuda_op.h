// Shared by the CUDA ops on the host side: the caller's stream and launch errors, and the element type of logits.
#pragma once

#include "cuda_stream.h"
#include "logit_type.h"
#include "logits.h"

namespace fastood {

inline LogitType logit_type(const Tensor& logits) {
  switch (logits.scalar_type()) {
    case ScalarType::Double:
      return LogitType::kFloat64;
    case ScalarType::Float:
      return LogitType::kFloat32;
    case ScalarType::BFloat16:
      return LogitType::kBFloat16;
    case ScalarType::Half:
      return LogitType::kFloat16;
    default:
      unsupported_logits(logits);
  }
}

}  // namespace fastood
