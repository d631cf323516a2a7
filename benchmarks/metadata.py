"""Metadata of a file of results: code, versions and machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

import fastood


def metadata(device: str) -> dict[str, object]:
    """Return commit, versions and machine, which must match before two files of results may be compared."""
    info = {
        "git_sha": os.environ.get("FASTOOD_GIT_SHA") or output_of("git", "rev-parse", "HEAD") or "unknown",
        "git_dirty": os.environ.get("FASTOOD_GIT_DIRTY") == "1"
        or bool(output_of("git", "status", "--porcelain", "-uno")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor_name(),
        "device": device,
        "build": {k: v for k, v in fastood.build_info().items() if k not in ("cuda_reason", "kernels")},
    }
    if device == "cuda":
        driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        info |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "driver": driver}
    return info


def output_of(*command: str) -> str:
    """Return what a command prints; an empty string if it is not installed or fails."""
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def processor_name() -> str:
    """Return the model name of the CPU, from /proc/cpuinfo where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
