"""Stages `machine` and `build`: tools and packages of the machine, and the extension for its GPU."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

from .context import Context, StageNotPossible
from .record import EXTENSION, Record, unpack
from .runner import Command, Finding, Stage

BUILD = "gpu-build"
OPTIONAL_TOOLS = ("compute-sanitizer", "ncu", "nsys", "ninja")
WITHOUT = {
    "compute-sanitizer": "memcheck, racecheck, synccheck and initcheck are not possible",
    "ncu": "profiles come from nsys or torch.profiler",
    "nsys": "used only where ncu is missing",
    "ninja": "cmake builds with make",
    "torch": "nothing can run",
    "pytest": "no tests and no benchmarks",
    "hypothesis": "tests that need it fail",
    "pytest_benchmark": "no benchmarks",
    "rich": "no benchmarks",
    "xdist": "the CUDA tests run in one process",
    "scipy": "tests that need it fail",
    "sklearn": "no scikit-learn peers, no training on the embedded digits",
    "lightning_fabric": "no training, no resampling step",
    "torchvision": "no peers with transforms, no resampling step",
    "torchmetrics": "no torchmetrics peer",
    "torchrl": "no peer with a prioritized tree on the GPU",
    "liger_kernel": "no Liger-Kernel peer",
    "quack": "no quack peer",
    "faiss": "no faiss peer",
    "nvidia.dali": "no DALI on the GPU",
    "triton": "no torch.compile peers",
}
"""Tools and packages that may be missing, and the consequence of each."""


def _probe(context: Context, record: Record) -> list[Command]:
    return [
        Command(argv=context.module("benchmarks.gpu.probe", *[name for name in WITHOUT if name not in OPTIONAL_TOOLS]))
    ]


def read_machine(context: Context, record: Record, text: str) -> Finding:
    """Store the facts that the probe has printed as its last line of JSON."""
    missing = {name: WITHOUT[name] for name in OPTIONAL_TOOLS if name not in context.tools}
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if not lines:
        record.missing = missing | {"torch": WITHOUT["torch"]}
        return Finding(detail="the probe printed nothing: no Python with torch?", failed=True)
    found = json.loads(lines[-1])
    absent = found.pop("absent")
    record.machine = found
    record.missing = missing | {name: WITHOUT[name] for name in absent}
    if not found.get("gpu"):
        return Finding(detail="torch sees no GPU", failed=True)
    return Finding(detail=f"{found['gpu']}, {len(record.missing)} tools or packages missing", facts=found)


def _build(context: Context, record: Record) -> list[Command]:
    cmake = context.tool("cmake")
    generator = ["-G", "Ninja"] if "ninja" in context.tools else []
    options = [f"-DPython_EXECUTABLE={context.python}", "-DFASTOOD_VERSION=0", "-DFASTOOD_BUILD_TESTS=OFF"]
    options.append(f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={context.work / 'fastood'}")
    if context.rehearse:
        if not extensions(context.work):
            raise StageNotPossible("a rehearsal takes the extension from the tree, which has none: make build")
        return [Command(argv=[cmake, "-S", ".", "-B", BUILD, *generator, *options, "-DFASTOOD_CUDA=0"])]
    context.tool("nvcc")
    return [
        Command(argv=[cmake, "-S", ".", "-B", BUILD, *generator, *options]),
        Command(argv=[cmake, "--build", BUILD, "--parallel"]),
    ]


def extensions(work: Path) -> list[Path]:
    """Return the compiled extension in a tree."""
    return sorted((work / "fastood").glob("_C*.so"))


def read_build(context: Context, record: Record, text: str) -> Finding:
    """Count registers and spills, and keep the extension for later calls."""
    built = extensions(context.work)
    if not built:
        return Finding(detail="no extension was built", failed=True)
    if context.rehearse:
        return Finding(detail="configured without CUDA; the extension is the one of the tree")
    with tarfile.open(context.out / EXTENSION, "w:xz", preset=1) as archive:
        archive.add(built[0], arcname=built[0].name)
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", text)]
    spills = [int(number) for number in re.findall(r"(\d+) bytes spill stores", text)]
    size = built[0].stat().st_size / 1e6
    detail = f"extension of {size:.0f} MB"
    if registers:
        spilling = sum(number > 0 for number in spills)
        detail += f", {len(registers)} kernels, at most {max(registers)} registers, {spilling} with spills"
    return Finding(detail=detail, facts={"megabytes": round(size, 1), "registers": registers, "spill_stores": spills})


def restore_extension(context: Context, record: Record) -> None:
    """Unpack the extension of an earlier call; without it the stage is run again."""
    built = record.stages.get("build")
    if built is None or built.outcome != "passed" or extensions(context.work):
        return
    if (context.out / EXTENSION).exists():
        unpack(context.out / EXTENSION, context.work / "fastood")
    else:
        del record.stages["build"]


MACHINE = Stage(
    name="machine",
    budget=30,
    shows="which GPU, driver, tools and packages there are",
    commands=_probe,
    read=read_machine,
)
BUILD_STAGE = Stage(
    name="build", budget=210, shows="whether the extension builds for this GPU", commands=_build, read=read_build
)
