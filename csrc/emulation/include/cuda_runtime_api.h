// The functions of the CUDA runtime that launchers and ops use. The stream is a queue that runs later:
// runtime/stream.h.
//
// These are C++ functions, not C: a process with a CUDA build of torch has the real ones under their C names.
#pragma once

#include <cstddef>
#include <source_location>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorCallRequiresNewerDriver = 36,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorStreamCaptureUnsupported = 900,
};

enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4,
};

typedef struct CUstream_st* cudaStream_t;

cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
// For the last launch that failed, the text names the kernel and the source line.
const char* cudaGetErrorString(cudaError_t error);
// 0, as CUDA reports on a machine without a driver.
cudaError_t cudaDriverGetVersion(int* version);

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream,
                            std::source_location where = std::source_location::current());
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream,
                            std::source_location where = std::source_location::current());

// These wait for the device. Each wait is counted; while a graph is captured it is an error.
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                       std::source_location where = std::source_location::current());
cudaError_t cudaStreamSynchronize(cudaStream_t stream, std::source_location where = std::source_location::current());
cudaError_t cudaDeviceSynchronize(std::source_location where = std::source_location::current());
