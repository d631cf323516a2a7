// Row kernels of the uniformity loss for the CPU: single-threaded, torch-free, one copy per instruction set.
#pragma once

#include <cstdint>

#include "../common/cpu_capability.h"
#include "../common/logit_type.h"
#include "../common/reduced_float.h"

namespace fastood {

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
