"""CUDA features that the emulation has, by name; any other in a kernel's source is an error that names it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from source_text import closing, code_of

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

FORBIDDEN_IN_KERNELS = {
    r"<<<": "a launch by a kernel (dynamic parallelism)",
    r"\bstd::(?:atomic|memory_order|mutex|thread|lock_guard)\w*": "std::atomic and threads of the host in a kernel",
    r"\b(?:throw|try)\b": "an exception in a kernel",
    r"\b(?:new|delete)\b|\b(?:malloc|calloc|free)\s*\(": "memory that a kernel allocates",
    r"\bstatic\b(?!\s+(?:constexpr|const)\b)": "a static variable of a kernel",
    r"\bassert\s*\(": "assert in a kernel",
}
"""Patterns that C++ knows and a kernel must not use: the compiler of the emulation takes all code for the host's."""

_CUDA_NAME = re.compile(
    r"(?<![\w:])(?:__\w+|atomic[A-Z]\w*|cuda[A-Z]\w*|cu[A-Z]\w+|CU(?:tensorMap|device|stream|event)\w*|cub::\w+|thrust::\w+)"
)
_INCLUDE = re.compile(r"^[ \t]*#\s*include\s*<([^>]+)>", re.MULTILINE)
_CUDA_HEADER = re.compile(
    r"^(?:cuda|cub/|thrust/|cooperative_groups|mma\.h|crt/|nv|cutlass|cute/|device_|vector_|sm_\d+|math_constants|texture|surface)"
)
_LAUNCH = re.compile(r"<<<(.*?)>>>", re.DOTALL)


_DEVICE_FUNCTION = re.compile(r"__global__|__device__|\bFASTOOD_HD\b")
_DEVICE_VARIABLE = re.compile(r"^[^\n#]*__device__[^\n;{}()]*(?<!operator)[;={]", re.MULTILINE)


class NotEmulatedError(Exception):
    """A source uses CUDA features that the emulation does not have."""


def device_bodies(code: str) -> list[tuple[int, int]]:
    """Return the spans of the bodies of device functions that run at run time alone."""
    spans: list[tuple[int, int]] = []
    for match in _DEVICE_FUNCTION.finditer(code):
        if spans and match.start() < spans[-1][1]:
            continue
        line = code[code.rfind("\n", 0, match.start()) + 1 : match.start()]
        depth, i = 0, match.end()
        while i < len(code) and not (depth == 0 and code[i] in "{;"):
            depth += (code[i] in "([") - (code[i] in ")]")
            i += 1
        head = line + code[match.start() : i]
        if i == len(code) or code[i] == ";" or "constexpr" in head or "#define" in head:
            continue
        spans.append((i, closing(code, i, "{}")))
    return spans


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
    for begin, end in device_bodies(code):
        for pattern, name in FORBIDDEN_IN_KERNELS.items():
            for match in re.compile(pattern).finditer(code, begin, end):
                yield line(match.start()), name
    for match in _DEVICE_VARIABLE.finditer(code):
        if "constexpr" not in match[0]:
            yield line(match.start()), "a variable of the device (__device__)"
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
