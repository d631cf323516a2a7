// Row kernels of the outlier losses for the CPU: single-threaded, torch-free, one copy per instruction set.
#pragma once

#include <cstdint>

#include "../common/cpu_capability.h"
#include "../common/logit_type.h"
#include "../common/reduced_float.h"
#include "losses.h"

namespace fastood::outlier_loss {

template <typename Logit>
struct LossRows {
  const Logit* logits;  // [num_rows, K], rows row_stride apart
  int64_t row_stride;
  int64_t num_rows;
  int64_t num_classes;              // K
  const int64_t* targets;           // [num_rows], or null for background throughout
  const Compute<Logit>* weight;     // [num_rows], or null for all ones
  const Compute<Logit>* uniform01;  // [num_rows] uniform draws in [0, 1) for kRejectClass, else null

  FASTOOD_HD const Logit* row(int64_t i) const { return logits + i * row_stride; }
  FASTOOD_HD int64_t target(int64_t i) const { return targets == nullptr ? kNoTarget : targets[i]; }

  FASTOOD_HD LossRows from(int64_t begin, int64_t end) const {
    LossRows part = *this;
    part.logits = row(begin);
    part.num_rows = end - begin;
    part.targets = targets == nullptr ? nullptr : targets + begin;
    part.weight = weight == nullptr ? nullptr : weight + begin;
    part.uniform01 = uniform01 == nullptr ? nullptr : uniform01 + begin;
    return part;
  }
};

#define FASTOOD_CPU_KERNELS "../outlier_loss/cpu_kernels.h"
#include "../common/cpu_copies.h"

}  // namespace fastood::outlier_loss
