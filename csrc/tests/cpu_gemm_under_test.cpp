// Compiled once per instruction set, as the kernels that use common/cpu_gemm.h are.
#include "cpu_gemm_under_test.h"

#include <memory>

namespace fastood::FASTOOD_CPU_CAPABILITY {
namespace {

#include "../common/cpu_gemm.h"

}  // namespace

template <typename Call>
void gemm_under_test(const Call& call) {
  using T = typename Call::T;
  // Of exactly the size that the header states, for the address sanitizer.
  static const std::unique_ptr<T[]> workspace(new T[kGemmWorkspace<T>]);
  multiply(call.rows, call.columns, call.depth, call.alpha,
           MatrixView<typename Call::A>{call.a, call.a_row_stride, call.a_column_stride},
           MatrixView<typename Call::B>{call.b, call.b_row_stride, call.b_column_stride}, call.add, call.c,
           call.c_row_stride, workspace.get());
}

template void gemm_under_test(const GemmCall<float, float, float>&);
template void gemm_under_test(const GemmCall<float, float, double>&);
template void gemm_under_test(const GemmCall<double, double, double>&);
template void gemm_under_test(const GemmCall<double, double, float>&);

}  // namespace fastood::FASTOOD_CPU_CAPABILITY
