"""The variants of the emulated build: how they are compiled, and in which environment a process loads them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.emulation.sources import CSRC, ROOT

VARIANTS = ("plain", "coverage", "address", "thread", "written", "mutants")
BUILD = ROOT / "build/emulated"


class MissingToolError(RuntimeError):
    """A tool is not installed; the message names the package that has it."""


def folder_of(variant: str) -> Path:
    """Return the build folder of a variant."""
    return BUILD / variant


def object_of(variant: str) -> Path:
    """Return the path of the object of a variant."""
    return folder_of(variant) / "fastood_emulated.so"


@dataclass(frozen=True)
class Tool:
    """A program that a stage needs."""

    name: str
    purpose: str
    package: str

    def path(self) -> str:
        """Return where the program is.

        Raises:
            MissingToolError: If it is not installed.
        """
        found = shutil.which(self.name)
        if found is None:
            raise MissingToolError(f"{self.name} is not installed, which {self.purpose} needs: {self.package}")
        return found


CMAKE = Tool("cmake", "the build", "pip install cmake")
NINJA = Tool("ninja", "the build", "pip install ninja")
GCOV = Tool("gcov", "the coverage", "install GCC (Debian, Ubuntu: apt install gcc)")
SETARCH = Tool("setarch", "ThreadSanitizer", "install util-linux (Debian, Ubuntu: apt install util-linux)")


@cache
def compiler() -> str:
    """Return the C++ compiler: CXX, or g++.

    Raises:
        MissingToolError: If there is none.
    """
    name = os.environ.get("CXX", "g++")
    return Tool(
        name, "the build", "install a C++20 compiler (Debian, Ubuntu: apt install g++), or name one by CXX"
    ).path()


@cache
def compiler_version() -> str:
    """Return name and version of the compiler, such as `g++ 12.2.0`."""
    dumped = subprocess.run(
        [compiler(), "-dumpfullversion", "-dumpversion"], capture_output=True, text=True, check=True
    )
    return f"{Path(compiler()).name} {dumped.stdout.strip()}"


@cache
def runtime(name: str) -> str:
    """Return the path of a sanitizer's shared library, such as libtsan.so.

    Raises:
        MissingToolError: If the compiler has none.
    """
    asked = subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(asked.stdout.strip())
    if not path.is_absolute() or not path.exists():
        package = name.split(".")[0]
        raise MissingToolError(
            f"{compiler()} has no {name}: install the sanitizers of its version (Debian, Ubuntu: a package "
            f"{package}N, which g++ depends on; Fedora: {package}), or name another g++ by CXX"
        )
    return str(path.resolve())


def launcher(variant: str) -> tuple[list[str], dict[str, str]]:
    """Return the command that precedes python, and the environment, of a process that loads a variant.

    Raises:
        MissingToolError: If a tool or a library is not installed.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        # Uninitialised memory of malloc is 0xa5…, not what was there before.
        "MALLOC_PERTURB_": "90",
    }
    if variant == "address":
        libraries = [runtime("libasan.so"), runtime("libubsan.so"), runtime("libstdc++.so.6")]
        environment["LD_PRELOAD"] = " ".join(libraries)
        # Python and torch leak by design; fibers have stacks of their own.
        environment["ASAN_OPTIONS"] = (
            "detect_leaks=0:detect_stack_use_after_return=0:malloc_fill_byte=255:max_malloc_fill_size=1073741824"
        )
        environment["UBSAN_OPTIONS"] = "print_stacktrace=1:halt_on_error=1"
    if variant == "thread":
        # The first library counts the reports of the second.
        environment["LD_PRELOAD"] = f"{folder_of('thread')}/libemulation_reports.so {runtime('libtsan.so')}"
        environment["TSAN_OPTIONS"] = "history_size=0:report_signal_unsafe=0"
        # Without random addresses, which ThreadSanitizer's map of memory may not allow.
        return [SETARCH.path(), "-R"], environment
    return [], environment


def build(variant: str, jobs: int) -> None:
    """Compile what changed of a variant.

    Raises:
        MissingToolError: If a tool is not installed.
        RuntimeError: If the compiler or CMake fails; the message is the end of the log.
    """
    folder = folder_of(variant)
    folder.mkdir(parents=True, exist_ok=True)
    configure = [CMAKE.path(), "-S", str(CSRC / "emulation"), "-B", str(folder), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={NINJA.path()}", f"-DFASTOOD_EMULATION_VARIANT={variant}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_CXX_COMPILER={compiler()}"]
    for command in (configure, [CMAKE.path(), "--build", str(folder), "-j", str(jobs)]):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            log = "\n".join((ran.stdout + ran.stderr).splitlines()[-60:])
            raise RuntimeError(f"{' '.join(command)}:\n{log}")
