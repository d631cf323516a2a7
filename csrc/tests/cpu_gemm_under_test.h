// common/cpu_gemm.h behind functions, one copy per instruction set: the header itself is for inside of a kernel.
#pragma once

#include <cstdint>

#include "../common/cpu_capability.h"

namespace fastood {

// C = alpha A B (+ C), all with any row and column strides but those of C, whose columns are adjacent.
template <typename T_, typename A_, typename B_>
struct GemmCall {
  using T = T_;
  using A = A_;
  using B = B_;
  int64_t rows, columns, depth;
  T alpha;
  const A* a;
  int64_t a_row_stride, a_column_stride;
  const B* b;
  int64_t b_row_stride, b_column_stride;
  bool add;
  T* c;
  int64_t c_row_stride;
};

namespace baseline {
template <typename Call>
void gemm_under_test(const Call& call);
}
#if defined(FASTOOD_HAVE_X86_KERNELS)
namespace avx2 {
template <typename Call>
void gemm_under_test(const Call& call);
}
namespace avx512 {
template <typename Call>
void gemm_under_test(const Call& call);
}
#endif

}  // namespace fastood
