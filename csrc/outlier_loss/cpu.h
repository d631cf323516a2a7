// Row kernels of the uniformity loss for the CPU: single-threaded, torch-free, one copy per instruction set.
#pragma once

#include <cstdint>

#include "../common/cpu_capability.h"
#include "../common/reduced_float.h"

namespace fastood {

// The type that a row is computed in: float64 for float64 logits, float32 for all others.
template <typename Logit>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <typename Logit>
using Compute = typename ComputeOf<Logit>::type;

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
