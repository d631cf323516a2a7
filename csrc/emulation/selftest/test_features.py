"""A CUDA feature that the emulation does not have is an error at build time that names it, file and line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EMULATION = Path(__file__).parents[1]

UNKNOWN = {
    "cooperative groups": "#include <cooperative_groups.h>",
    "<cuda/pipeline>": "#include <cuda/pipeline>",
    "<cuda/barrier>": "#include <cuda/barrier>",
    "<mma.h>": "#include <mma.h>",
    "<cub/warp/warp_reduce.cuh>": "#include <cub/warp/warp_reduce.cuh>",
    "<thrust/sort.h>": "#include <thrust/sort.h>",
    "<cuda_pipeline.h>": "#include <cuda_pipeline.h>",
    "inline assembly": '__global__ void k() { asm volatile("cp.async.wait_all;"); }',
    "__pipeline_memcpy_async": "__global__ void k(int* a, int* b) { __pipeline_memcpy_async(a, b, 4); }",
    "__cluster_dims__": "__global__ void __cluster_dims__(2, 1, 1) k() {}",
    "dynamic shared memory": "__global__ void k() { extern __shared__ float x[]; x[0] = 1; }",
    "__nanosleep": "__global__ void k() { __nanosleep(100); }",
    "textures": "__global__ void k(float* o, cudaTextureObject_t t) { o[0] = tex2D<float>(t, 0, 0); }",
    "surfaces": "__global__ void k(float* o, int s) { surf2Dread(o, s, 0, 0); }",
    "CUtensorMap": "__global__ void k(const __grid_constant__ CUtensorMap m) {}",
    "__activemask": "__global__ void k(unsigned* o) { o[0] = __activemask(); }",
    "volatile": "__global__ void k(volatile float* o) { o[0] = 1; }",
    "2-D or 3-D grid or block": "__global__ void k(unsigned* o) { o[0] = threadIdx.y; }",
    "(dim3)": "__global__ void k() {}\nvoid l(cudaStream_t s) { k<<<dim3(2, 2), 32, 0, s>>>(); }",
    "this form of a launch": "__global__ void k() {}\nvoid l() { k<<<1>>>(); }",
    "this form of __shared__": "__global__ void k(float* o) { __shared__ float a, b; o[0] = a + b; }",
    "printf on the device": '__global__ void k() { printf("x"); }',
    "cudaMalloc": "void l(void** p) { cudaMalloc(p, 4); }",
    "cudaStreamCreate": "void l(cudaStream_t* s) { cudaStreamCreate(s); }",
    "cudaEventRecord": "void l(cudaEvent_t e) { cudaEventRecord(e); }",
    "cudaLaunchKernelEx": "void l() { cudaLaunchKernelEx(nullptr); }",
    "cuLaunchKernel": "void l() { cuLaunchKernel(); }",
    "cub::DeviceReduce": "void l() { cub::DeviceReduce::Sum(); }",
    "thrust::sort": "void l(int* a) { thrust::sort(a, a + 1); }",
    "libcu++": "__global__ void k(cuda::atomic<int>* a) { ++*a; }",
    "tensor cores": "__global__ void k() { nvcuda::wmma::fill_fragment(); }",
    "__vadd2": "__global__ void k(unsigned* o) { o[0] = __vadd2(1, 2); }",
    "__threadfence_block": "__global__ void k() { __threadfence_block(); }",
    "__threadfence_system": "__global__ void k() { __threadfence_system(); }",
    "__match_any_sync": "__global__ void k(unsigned* o) { o[0] = __match_any_sync(~0u, 1); }",
    "__constant__": "__constant__ float c[4];",
    "__managed__": "__managed__ float c[4];",
    "atomicInc": "__global__ void k(unsigned* o) { atomicInc(o, 4); }",
    "a launch by a kernel": "__global__ void c() {}\n__global__ void k() { c<<<1, 1>>>(); }",
    "std::atomic": "__global__ void k(int* o) { std::atomic_ref<int> a(*o); ++a; }",
    "an exception": "__device__ void k() { throw 1; }",
    "memory that a kernel allocates": "__global__ void k(int** o) { o[0] = new int; }",
    "a static variable": "__global__ void k(int* o) { static int n; o[0] = n++; }",
    "assert in a kernel": "__global__ void k(int* o) { assert(o[0] == 1); }",
    "a variable of the device": "__device__ int counter;",
    "clock": "__global__ void k(long long* o) { o[0] = clock64(); }",
}
"""Text in the message, and a source that causes it."""

REFUSED_BY_THE_COMPILER = {
    "more than 4 KB of arguments": "struct A { char x[5000]; };\n__global__ void k(A a) {}\n"
    "void l(cudaStream_t s) { k<<<1, 32, 0, s>>>(A{}); }",
    "more than 48 KB of static shared memory": "__global__ void k(char* o) { __shared__ char x[50000]; o[0] = x[0]; }",
    "2-D and 3-D grids and blocks are not emulated": "struct Size { operator int() const { return 1; } };\n"
    "__global__ void k() {}\nvoid l(cudaStream_t s) { k<<<Size{}, 32, 0, s>>>(); }",
    "no shuffle of this type is emulated": "struct A { char x[4]; };\n"
    "__global__ void k(A* o) { o[0] = __shfl_sync(~0u, o[0], 0); }",
    "copied byte by byte": "#include <vector>\n__global__ void k(std::vector<int> a) {}\n"
    "void l(cudaStream_t s) { k<<<1, 32, 0, s>>>(std::vector<int>()); }",
}


def translate(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    source = folder / "csrc/op/cuda.cu"
    source.parent.mkdir(parents=True)
    source.write_text(f"// The first line.\n{text}\n")
    command = [sys.executable, str(EMULATION / "translate.py"), str(folder / "csrc"), str(folder / "out")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_feature_is_named(name: str, tmp_path: Path) -> None:
    done = translate(UNKNOWN[name], tmp_path)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if name in line or f"<{name.replace(' ', '_')}.h>" in line]
    assert lines, done.stderr
    assert lines[0].startswith(("csrc/op/cuda.cu:2: error: ", "csrc/op/cuda.cu:3: error: "))
    assert "is not emulated" in lines[0]
    assert not (tmp_path / "out/op/cuda.cu.cpp").exists()


@pytest.mark.parametrize("message", REFUSED_BY_THE_COMPILER)
def test_compiler_refuses(message: str, tmp_path: Path) -> None:
    assert translate(REFUSED_BY_THE_COMPILER[message], tmp_path).returncode == 0
    include = EMULATION / "include"
    compiler = os.environ.get("CXX", "c++")
    options = ["-std=c++20", "-fsyntax-only", f"-I{include}", "-include", str(include / "emulation/kernel.h")]
    command = [compiler, *options, str(tmp_path / "out/op/cuda.cu.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr


def test_lines_stay(tmp_path: Path) -> None:
    text = """__global__ void k(const float* a,
                  float* b) {
  __shared__ float x[2]
      [3];
  b[0] = x[0][0] + a[0];
}

void l(float* a, cudaStream_t stream) {
  k<<<1,
      32, 0,
      stream>>>(a,
                a);
}
int last;"""
    assert translate(text, tmp_path).returncode == 0
    translated = (tmp_path / "out/op/cuda.cu.cpp").read_text().splitlines()
    assert translated[0].startswith("#line 1 ")
    original = (tmp_path / "csrc/op/cuda.cu").read_text().splitlines()
    # One line more: the #line directive.
    assert translated.index("int last;") == original.index("int last;") + 1


def test_what_only_kernels_must_not_do_is_left_to_the_host(tmp_path: Path) -> None:
    text = """__device__ constexpr int table[2] = {1, 2};
__device__ int first(const int* a);
__global__ void k(int* o) { static constexpr int kOne = 1; o[0] = static_cast<int>(kOne); }
int* l() { static int n; if (n++ > 3) throw n; return new int; }"""
    done = translate(text, tmp_path)
    assert done.returncode == 0, done.stderr


def test_names_in_comments_and_texts_are_no_features(tmp_path: Path) -> None:
    text = '// __nanosleep, asm, dim3\nconst char* t = "cudaMalloc printf(";  /* volatile */'
    assert translate(text, tmp_path).returncode == 0
