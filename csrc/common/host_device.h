// Marks maths that the CPU op, the CUDA kernel and the host tests share.
#pragma once

#if defined(__CUDACC__)
#define FASTOOD_HD __host__ __device__ __forceinline__
#define FASTOOD_UNROLL _Pragma("unroll")
#else
// always_inline: this header is compiled once per instruction set, and an out-of-line copy built with AVX-512
// could otherwise be the one that the linker keeps for a machine without it.
#define FASTOOD_HD inline __attribute__((always_inline))
#define FASTOOD_UNROLL _Pragma("GCC unroll 16")
#endif
