// One kernel, and the headers that a toolkit may lack: CUB comes with a package of its own.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <concepts>
#include <cub/version.cuh>

template <std::floating_point T>
__global__ void probe(T* out) {
  *out = T{1};
}

cudaError_t launch(float* out) {
  probe<<<1, 1>>>(out);
  return cudaGetLastError();
}
