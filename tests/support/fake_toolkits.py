"""CUDA toolkits that are trees of empty files, with a shell script as nvcc, for the tests of cmake/."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def write_script(path: Path, body: str) -> None:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def write_nvcc(path: Path, top: Path | None = None, version: str = "13.0", codes: str = "75 80 90 100 120") -> None:
    """Write an nvcc that knows its version, its toolkit and its architectures, and compiles nothing."""
    listed = "\\n".join(f"sm_{code}" for code in codes.split())
    said = f"echo '#$ TOP={top}/bin/..' >&2" if top else ":"
    write_script(
        path,
        'case "$1" in\n'
        f"  --version) echo 'Cuda compilation tools, release {version}, V{version}.1';;\n"
        f"  --dryrun) {said};;\n"
        f"  --list-gpu-code) printf '{listed}\\n';;\n"
        "  *) echo 'cicc: \"not; found\"' >&2; exit 2;;\n"
        "esac",
    )


def write_headers(folder: Path, version: str = "13.0") -> None:
    """Write the headers of a version."""
    folder.mkdir(parents=True)
    major, minor = version.split(".")
    (folder / "cuda_runtime.h").touch()
    (folder / "cuda_runtime_api.h").write_text(f"#define CUDART_VERSION  {1000 * int(major) + 10 * int(minor)}\n")


def write_cudart(folder: Path) -> None:
    """Write an empty static runtime."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "libcudart_static.a").touch()


def write_toolkit(root: Path, version: str = "13.0", codes: str = "75 80 90 100 120") -> None:
    """Write a toolkit that is one folder, as NVIDIA's installers make it."""
    write_nvcc(root / "bin/nvcc", root, version, codes)
    write_headers(root / "include", version)
    write_cudart(root / "lib64")


def run_cmake_script(folder: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a CMake script that includes modules of `cmake/`, in an environment without CUDA's variables."""
    (folder / "script.cmake").write_text(f"cmake_minimum_required(VERSION 3.24)\n{script}", encoding="utf-8")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA", "CONDA", "TORCH_CUDA", "FASTOOD_"))}
    command = ["cmake", "-P", folder / "script.cmake"]
    return subprocess.run(command, capture_output=True, text=True, env={**clean, **environment})
