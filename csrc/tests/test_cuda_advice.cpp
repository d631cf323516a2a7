// Remedies in launch errors of drivers and architectures (common/cuda_advice.h).
#include <string>

#include "../common/cuda_advice.h"
#include "expect.h"

namespace {

using fastood::cuda_advice;
using fastood::testing::expect;

constexpr fastood::CudaBuild kBuild{"nvcc 13.0.88", "580", "8.0 9.0+PTX"};

void expect_says(int error, int driver_version, const char* what) {
  const std::string advice = cuda_advice(error, driver_version, kBuild);
  expect(advice.starts_with(": ") && advice.find(what) != std::string::npos, what, error);
}

}  // namespace

int main() {
  for (const int error : {fastood::kInsufficientDriver, fastood::kCallRequiresNewerDriver}) {
    expect_says(error, 12080, "built by nvcc 13.0.88, which needs driver 580 or newer");
    expect_says(error, 12080, "the NVIDIA driver supports CUDA up to 12.8");
    expect_says(error, 0, "no NVIDIA driver was found");
    expect_says(error, 12080, "CUDA_HOME=");
  }
  for (const int error : {fastood::kNoKernelImage, fastood::kUnsupportedPtxVersion}) {
    expect_says(error, 13000, "for the compute capabilities 8.0 9.0+PTX");
    expect_says(error, 13000, "TORCH_CUDA_ARCH_LIST=");
  }
  // cudaErrorInvalidValue, cudaErrorInvalidConfiguration, cudaErrorIllegalAddress
  for (const int error : {1, 9, 700}) {
    expect(cuda_advice(error, 13000, kBuild).empty(), "no advice about other errors", error);
  }
  return fastood::testing::report("cuda_advice");
}
