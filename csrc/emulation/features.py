"""CUDA features that the emulation has, by name; any other in a kernel's source is an error that names it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from source_text import code_of

INCLUDE = Path(__file__).parent / "include"

_NAMES = """
__global__ __device__ __host__ __shared__ __forceinline__ __launch_bounds__ __grid_constant__ __restrict__
__CUDACC__ __CUDA_ARCH__ __syncthreads __syncthreads_or __syncthreads_and __syncthreads_count __syncwarp
__shfl_sync __shfl_xor_sync __shfl_up_sync __shfl_down_sync __ballot_sync __any_sync __all_sync
__threadfence __ldg __ldcg __ldcs __stcs __stcg __ffs __popc __clz __clzll __fmaf_rn __fma_rn __umul64hi __umulhi
__double_as_longlong __longlong_as_double __float_as_int __float_as_uint __int_as_float __uint_as_float
__half __half2float __float2half_rn __nv_bfloat16 __bfloat162float __float2bfloat16_rn
atomicAdd atomicMin atomicMax atomicExch atomicAnd atomicOr atomicCAS
cudaError_t cudaStream_t cudaSuccess cudaErrorInvalidValue cudaErrorInvalidConfiguration
cudaErrorInsufficientDriver cudaErrorCallRequiresNewerDriver cudaErrorNoKernelImageForDevice
cudaErrorUnsupportedPtxVersion cudaErrorStreamCaptureUnsupported cudaDriverGetVersion
cudaGetLastError cudaPeekAtLastError cudaGetErrorString
cudaMemsetAsync cudaMemcpyAsync cudaMemcpy cudaStreamSynchronize cudaDeviceSynchronize
cudaMemcpyKind cudaMemcpyHostToDevice cudaMemcpyDeviceToHost cudaMemcpyDeviceToDevice cudaMemcpyDefault
cub::BlockScan cub::DeviceRadixSort cub::DeviceSegmentedRadixSort
thrust::make_counting_iterator thrust::make_transform_iterator
thrust::counting_iterator thrust::transform_iterator
"""
KNOWN = frozenset(_NAMES.split())
"""Names of the emulated features, which the headers in `include/` define."""

OF_THE_COMPILER = re.compile(
    r"__(builtin_\w+|attribute__|extension__|int128|FMA__|AVX\w+|SSE\w+|ARM_\w+|linux__|x86_64__|aarch64__"
    r"|has_include|FILE__|LINE__|GNUC__|clang__|cplusplus|VA_ARGS__|func__|restrict)"
)
"""Names that look like intrinsics of CUDA, but belong to the C++ compiler."""

FORBIDDEN = {
    r"extern\s+__shared__": "dynamic shared memory",
    r"\basm\b|\b__asm\w*": "inline assembly (asm), cp.async among it",
    r"\bvolatile\b": "volatile, which orders no memory between threads",
    r"\b(?:threadIdx|blockIdx|blockDim|gridDim)\s*\.\s*[yz]\b": "a 2-D or 3-D grid or block",
    r"\bdim3\b": "a 2-D or 3-D grid or block (dim3)",
    r"\b(?:cooperative_groups|cg)\s*::\s*\w+|\bcooperative_groups\b": "cooperative groups",
    r"\bcuda::(?!std\b)\w+": "libcu++ (cuda::)",
    r"\bnvcuda::\w+": "tensor cores (nvcuda::)",
    r"\bv?f?printf\s*\(": "printf on the device",
    r"\btex(?:1D|2D|3D|Cubemap)\w*|\btexture\s*<": "textures",
    r"\bsurf(?:1D|2D|3D|Cubemap)\w+|\bsurface\s*<": "surfaces",
    r"\bclock(?:64)?\s*\(": "the clock of a multiprocessor",
}
"""Patterns of features that a list of names cannot find, and their names in the error."""

_CUDA_NAME = re.compile(
    r"(?<![\w:])(?:__\w+|atomic[A-Z]\w*|cuda[A-Z]\w*|cu[A-Z]\w+|CU(?:tensorMap|device|stream|event)\w*|cub::\w+|thrust::\w+)"
)
_INCLUDE = re.compile(r"^[ \t]*#\s*include\s*<([^>]+)>", re.MULTILINE)
_CUDA_HEADER = re.compile(
    r"^(?:cuda|cub/|thrust/|cooperative_groups|mma\.h|crt/|nv|cutlass|cute/|device_|vector_|sm_\d+|math_constants|texture|surface)"
)
_LAUNCH = re.compile(r"<<<(.*?)>>>", re.DOTALL)


class NotEmulatedError(Exception):
    """A source uses CUDA features that the emulation does not have."""


def unknown_features(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of each CUDA feature in the text that the emulation does not have."""
    code = code_of(text)

    def line(position: int) -> int:
        return text.count("\n", 0, position) + 1

    for match in _INCLUDE.finditer(text):
        if _CUDA_HEADER.match(match[1]) and not (INCLUDE / match[1]).exists():
            yield line(match.start()), f"the header <{match[1]}>"
    for pattern, name in FORBIDDEN.items():
        for match in re.finditer(pattern, code):
            yield line(match.start()), name
    code = _INCLUDE.sub(lambda match: " " * len(match[0]), code)
    for match in _CUDA_NAME.finditer(code):
        if match[0] not in KNOWN and not OF_THE_COMPILER.fullmatch(match[0]):
            yield line(match.start()), match[0]


def check(text: str, name: str) -> None:
    """Check that a source uses only CUDA features that the emulation has.

    Raises:
        NotEmulatedError: If it uses others. The message has a line for each, with the name `name` of the source.
    """
    found = sorted(set(unknown_features(text)))
    if found:
        raise NotEmulatedError(
            "\n".join(
                f"{name}:{line}: error: {feature} is not emulated: add it to csrc/emulation, and to features.py"
                for line, feature in found
            )
        )
