"""Context of the stages: folders, interpreter, tools of the machine, and the commands that run on the device."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from .record import RUNNING_ROWS

ROOT = Path(__file__).resolve().parents[2]
FAKES = Path(__file__).parent / "fakes"
TOOLS = ("nvidia-smi", "nvcc", "cmake", "ninja", "compute-sanitizer", "ncu", "nsys")
FAKEABLE = ("nvidia-smi", "compute-sanitizer", "ncu")
LEFT_OUT = {".git", ".venv", "build", "runs", ".carry", "shared", "__pycache__", ".pytest_cache", ".ruff_cache"}
QUIET = ("-p", "no:cacheprovider", "-o", "addopts=--strict-markers")
SOURCES = ("csrc", "cmake", "fastood", "tests", "benchmarks")


class StageNotPossible(Exception):  # noqa: N818
    """A stage cannot run on this machine; the message says why."""


@dataclass(kw_only=True)
class Context:
    """Folders and tools of a run."""

    out: Path
    work: Path
    """Copy of the source tree; commands run in it, so that the tree stays clean."""
    root: Path = ROOT
    python: str = sys.executable
    rehearse: bool = False
    extension: Path | None = None
    """Compiled emulation of a CUDA device, for a rehearsal."""
    tools: dict[str, str] = field(default_factory=dict)
    fakes: list[str] = field(default_factory=list)

    @property
    def logs(self) -> Path:
        """Folder of the logs."""
        return self.work / "gpu-logs"

    @property
    def rows(self) -> Path:
        """File of the rows of the running stage."""
        return self.out / RUNNING_ROWS

    def tool(self, name: str) -> str:
        """Return the path of a tool.

        Raises:
            StageNotPossible: If the machine has no such tool.
        """
        if name not in self.tools:
            raise StageNotPossible(f"{name} is neither on PATH nor in the CUDA toolkit")
        return self.tools[name]

    def module(self, *arguments: str) -> list[str]:
        """Return the command that runs a Python module on the device: real, or emulated in a rehearsal."""
        rehearsed = ["benchmarks.gpu.rehearsal", "--emulated", str(self.extension), "-m"] if self.rehearse else []
        return [self.python, "-m", *rehearsed, *arguments]

    def cuda_tests(self, *arguments: str) -> list[str]:
        """Return the command that runs the CUDA tests on the device."""
        emulated = ["-p", "tests.emulation.plugin", "--emulated", str(self.extension)] if self.rehearse else []
        return [self.python, "-m", "pytest", "-q", *QUIET, "-m", "needs_cuda", *emulated, *arguments]

    def environment(self) -> dict[str, str]:
        """Return the environment of every command."""
        paths = [str(self.work), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            "FASTOOD_REQUIRE_CUDA": "1",
            # Four architectures take four times as long to compile as the one of this machine.
            "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST") or capability(self),
        }
        if not self.rehearse:
            environment["FASTOOD_CUDA"] = "1"
        return environment


def capability(context: Context) -> str:
    """Return the compute capability that nvidia-smi reports, or an empty string."""
    import subprocess

    if "nvidia-smi" not in context.tools:
        return ""
    command = [context.tools["nvidia-smi"], "--query-gpu=compute_cap", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[0].strip() if done.returncode == 0 else ""


def find_tools(*, rehearse: bool) -> tuple[dict[str, str], list[str]]:
    """Return the path of each tool of the machine and, in a rehearsal, the names of those that a script imitates."""
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders += [Path("/usr/local/cuda/bin"), *sorted(Path("/opt/nvidia").glob("nsight-*/*/"))]
    found, fakes = {}, []
    for name in TOOLS:
        path = shutil.which(name) or next((str(f / name) for f in folders if os.access(f / name, os.X_OK)), None)
        if path is None and rehearse and name in FAKEABLE:
            path, _ = str(FAKES / name), fakes.append(name)
        if path is not None:
            found[name] = path
    return found, fakes


def source_hash(root: Path) -> str:
    """Return a hash of the source files; results of different sources must not be mixed."""
    digest = hashlib.sha256()
    files = [root / "CMakeLists.txt", root / "setup.py", root / "pyproject.toml"]
    for folder in SOURCES:
        files += [path for path in sorted((root / folder).rglob("*")) if not set(path.parts) & LEFT_OUT]
    for path in files:
        skipped = path.suffix in {".so", ".pyc", ".json", ".md", ".png"} or "results" in path.parts
        if path.is_file() and not skipped:
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def copy_tree(root: Path, work: Path, *, with_extension: bool) -> None:
    """Copy the source tree, so that neither build products nor caches end up in it."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        top = Path(folder) == root
        return {
            name
            for name in names
            if (name in LEFT_OUT and (top or name.startswith(("__", "."))))
            or (name.endswith(".so") and not with_extension)
        }

    shutil.copytree(root, work, ignore=left_out, symlinks=True, dirs_exist_ok=True)
