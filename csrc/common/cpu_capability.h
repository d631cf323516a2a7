// Which instruction set the CPU kernels run with.
//
// CMakeLists.txt compiles the kernel sources once per capability with FASTOOD_CPU_CAPABILITY set to its name, which is also
// the namespace of that copy; the op asks `cpu_capability()` once and calls the matching one. The environment variable
// of the same name (baseline, avx2, avx512) lowers the choice, for tests and comparisons.
#pragma once

#include <cstdlib>
#include <cstring>

namespace fastood {

enum class CpuCapability { kBaseline, kAvx2, kAvx512 };

inline CpuCapability detect_cpu_capability() {
  CpuCapability best = CpuCapability::kBaseline;
#if defined(FASTOOD_HAVE_X86_KERNELS)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    best = CpuCapability::kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      best = CpuCapability::kAvx512;
    }
  }
#endif
  const char* wanted = std::getenv("FASTOOD_CPU_CAPABILITY");
  if (wanted != nullptr && std::strcmp(wanted, "baseline") == 0) {
    return CpuCapability::kBaseline;
  }
  if (wanted != nullptr && std::strcmp(wanted, "avx2") == 0 && best == CpuCapability::kAvx512) {
    return CpuCapability::kAvx2;
  }
  return best;
}

inline CpuCapability cpu_capability() {
  static const CpuCapability capability = detect_cpu_capability();
  return capability;
}

inline const char* cpu_capability_name() {
  switch (cpu_capability()) {
    case CpuCapability::kAvx512:
      return "avx512";
    case CpuCapability::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace fastood

// Picks the copy of a kernel for this machine, e.g. FASTOOD_CPU_DISPATCH(logit_scores<float>)(...); for use inside the
// namespace that holds the copies (cpu_copies.h).
#if defined(FASTOOD_HAVE_X86_KERNELS)
#define FASTOOD_CPU_DISPATCH(kernel)                                                 \
  (::fastood::cpu_capability() == ::fastood::CpuCapability::kAvx512 ? avx512::kernel \
   : ::fastood::cpu_capability() == ::fastood::CpuCapability::kAvx2 ? avx2::kernel   \
                                                                    : baseline::kernel)
#else
#define FASTOOD_CPU_DISPATCH(kernel) baseline::kernel
#endif
