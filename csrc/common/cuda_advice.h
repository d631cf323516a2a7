// Remedies of CUDA errors that arise where the build does not fit the driver or the GPU. Without CUDA headers, so that
// host tests include it; cuda_stream.h compares the numbers with cudaError_t.
#pragma once

#include <string>

namespace fastood {

constexpr int kInsufficientDriver = 35;
constexpr int kCallRequiresNewerDriver = 36;
constexpr int kNoKernelImage = 209;
constexpr int kUnsupportedPtxVersion = 222;

// How the kernels were built.
struct CudaBuild {
  const char* compiler;      // "nvcc 13.0.88"
  const char* driver;        // oldest driver for the static runtime, "580"
  const char* capabilities;  // "8.0 9.0+PTX"
};

// Returns a sentence that begins with ": ", or an empty string for other errors. driver_version: the number of
// cudaDriverGetVersion, such as 12080 for 12.8, and 0 without a driver.
inline std::string cuda_advice(int error, int driver_version, const CudaBuild& build) {
  const std::string driver = driver_version == 0
                                 ? "no NVIDIA driver was found"
                                 : "the NVIDIA driver supports CUDA up to " + std::to_string(driver_version / 1000) +
                                       "." + std::to_string(driver_version % 1000 / 10);
  switch (error) {
    case kInsufficientDriver:
    case kCallRequiresNewerDriver:
      return std::string(": fastood was built by ") + build.compiler + ", which needs driver " + build.driver +
             " or newer, and " + driver +
             ". Update the driver, or reinstall fastood with CUDA_HOME=<a toolkit of the driver's CUDA version>";
    case kNoKernelImage:
    case kUnsupportedPtxVersion:
      return std::string(": fastood was built by ") + build.compiler + " for the compute capabilities " +
             build.capabilities + ", which this GPU or its driver cannot run (" + driver +
             "). Reinstall fastood on this machine, or with TORCH_CUDA_ARCH_LIST=<the GPU's capability>, which "
             "`nvidia-smi --query-gpu=compute_cap --format=csv` shows";
    default:
      return "";
  }
}

}  // namespace fastood
