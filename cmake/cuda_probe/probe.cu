#include <cuda_runtime.h>

#include <concepts>

template <std::floating_point T>
__global__ void probe(T* out) {
  *out = T{1};
}

cudaError_t launch(float* out) {
  probe<<<1, 1>>>(out);
  return cudaGetLastError();
}
