// The caller's CUDA stream and launch errors, without linking libtorch_cuda: the same build runs under a CPU-only torch.
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

#include "cuda_advice.h"

namespace fastood {

// torch exports this from libtorch_cuda alone. A weak symbol would not find it: Python opens extension modules with
// local scope, and libtorch_cuda is no dependency of ours.
inline cudaStream_t current_cuda_stream(int32_t device_index) {
  using GetStream = int32_t (*)(int32_t device_index, void** stream);
  static const GetStream get_stream = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = torch_cuda == nullptr ? nullptr : dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<GetStream>(symbol);
  }();
  STD_TORCH_CHECK(get_stream != nullptr, "CUDA tensors need a torch built with CUDA; this one has no libtorch_cuda.so");
  void* stream = nullptr;
  STD_TORCH_CHECK(get_stream(device_index, &stream) == 0, "no current CUDA stream on device ", device_index);
  return static_cast<cudaStream_t>(stream);
}

// The CUDA runtime is linked statically, and may need a newer driver than torch's own runtime: the first launch then
// fails.
inline void check_launch(cudaError_t error, const char* kernel) {
  if (error == cudaSuccess) {
    return;
  }
  std::string advice;
#ifdef FASTOOD_CUDA_DRIVER  // of CMakeLists.txt; the emulation has no driver
  static_assert(kInsufficientDriver == cudaErrorInsufficientDriver &&
                kNoKernelImage == cudaErrorNoKernelImageForDevice);
  static_assert(kCallRequiresNewerDriver == cudaErrorCallRequiresNewerDriver);
  static_assert(kUnsupportedPtxVersion == cudaErrorUnsupportedPtxVersion);
  int driver_version = 0;
  cudaDriverGetVersion(&driver_version);
  advice = cuda_advice(static_cast<int>(error), driver_version,
                       {FASTOOD_CUDA_COMPILER, FASTOOD_CUDA_DRIVER, FASTOOD_CUDA_ARCHITECTURES});
#endif
  STD_TORCH_CHECK(false, kernel, ": CUDA launch failed: ", cudaGetErrorString(error), advice);
}

}  // namespace fastood
