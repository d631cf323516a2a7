// Qualifiers of CUDA C++, and the macros by which code finds out that nvcc compiles it for a device.
#pragma once

#define __CUDACC__ 1
#define __CUDACC_VER_MAJOR__ 12
// The oldest architecture that the project supports: all newer ones have its features.
#define __CUDA_ARCH__ 750

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
