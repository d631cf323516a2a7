"""Evidence for each CUDA kernel: compiled, run in the emulation, run on a GPU.

`cuda_status.json` holds the evidence. `benchmarks/cuda_status.py` writes it, checks that it lists every kernel of
`csrc/`, and renders the tables of `benchmarks/results/README.md`. Evidence names the source it was gathered from, so
that a kernel that changed afterwards is not reported as tested.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

__all__ = ["STATUS_FILE", "Evidence", "FileCounts", "Kernel", "KernelStatus", "Status", "kernel_status", "read_status"]

STATUS_FILE = Path(__file__).with_name("cuda_status.json")


class Kernel(TypedDict):
    """A kernel of `csrc/`."""

    file: str
    """File of the kernel, relative to `csrc/`."""
    source: str
    """Digest of the kernel's file and of every header of `csrc/` that it includes, without comments."""


class FileCounts(TypedDict):
    """Results of the emulation for a file, as pairs `[reached, total]`."""

    lines: NotRequired[list[int]]
    """Executable lines that ran."""
    mutants: NotRequired[list[int]]
    """Changed barriers, fences, masks and guards that a test noticed."""


class Evidence(TypedDict):
    """A run of a compiler, of the emulation or of a GPU, and the kernels that took part."""

    kind: Literal["compiled", "emulated", "proven"]
    by: str
    """Compiler, or GPU with its driver."""
    variants: list[str]
    """Compute capabilities ("compiled", "proven") or variants of the emulation ("emulated")."""
    kernels: dict[str, str]
    """Kernels that took part, each with the digest of its source at that time."""
    registers: NotRequired[dict[str, list[int]]]
    """Least and most registers of a thread, over architectures and instances ("compiled")."""
    spills: NotRequired[dict[str, int]]
    """Most bytes that an instance without float64 spills; kernels without spills are left out ("compiled")."""
    files: NotRequired[dict[str, FileCounts]]
    """Lines that ran and changes that were noticed ("emulated")."""


class Status(TypedDict):
    """Contents of `cuda_status.json`."""

    kernels: dict[str, Kernel]
    evidence: list[Evidence]


class KernelStatus(TypedDict):
    """Evidence for one kernel, in words; an empty string means that there is none."""

    file: str
    compiled: str
    emulated: str
    proven: str


def read_status(path: Path = STATUS_FILE) -> Status:
    """Return the contents of `cuda_status.json`."""
    status: Status = json.loads(path.read_text(encoding="utf-8"))
    return status


def kernel_status(status: Status) -> dict[str, KernelStatus]:
    """Return the evidence for each kernel in words.

    Args:
        status: The contents of `cuda_status.json`.
    """
    return {
        name: KernelStatus(
            file=kernel["file"],
            compiled=_describe(status, name, "compiled"),
            emulated=_describe(status, name, "emulated"),
            proven=_describe(status, name, "proven"),
        )
        for name, kernel in status["kernels"].items()
    }


def _describe(status: Status, name: str, kind: str) -> str:
    """Return who ran a kernel, and whether its source changed afterwards."""
    sentences = []
    for evidence in status["evidence"]:
        if evidence["kind"] == kind and name in evidence["kernels"]:
            changed = evidence["kernels"][name] != status["kernels"][name]["source"]
            sentences.append(
                f"{evidence['by']}: {', '.join(evidence['variants'])}" + ("; source changed since" if changed else "")
            )
    return "; ".join(sentences)
