// Row kernels of the detection scores for the CPU: single-threaded, torch-free, one copy per instruction set.
#pragma once

#include <cstdint>

#include "../common/cpu_capability.h"
#include "../common/logit_type.h"
#include "../common/reduced_float.h"
#include "math.h"

namespace fastood {

template <typename Logit>
struct ScoreRows {
  const Logit* logits;  // [num_rows, num_logits], rows row_stride apart
  int64_t row_stride;
  int64_t num_rows;
  int64_t num_logits;  // K + num_reject
};

namespace baseline {
#include "cpu_kernels.h"
}
#if defined(FASTOOD_HAVE_X86_KERNELS)
namespace avx2 {
#include "cpu_kernels.h"
}
namespace avx512 {
#include "cpu_kernels.h"
}
#endif

}  // namespace fastood
