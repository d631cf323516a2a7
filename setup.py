"""Builds fastood._C with CMake and ninja; CMakeLists.txt is the only list of sources.

Environment: FASTOOD_CUDA=auto|0|1, CUDA_HOME, TORCH_CUDA_ARCH_LIST (native, all, or torch's form), MAX_JOBS, CMAKE_ARGS
(extra -D options).
"""

import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_CMAKE = (3, 24)
"""Lowest version of CMake, as cmake_minimum_required has it."""


def find_tool(name: str) -> Path:
    """Return the path of cmake or ninja: this environment's, or the one on PATH.

    Args:
        name: "cmake" or "ninja".

    Raises:
        SystemExit: If there is none, with the command that installs it.
    """
    # pip's isolated build has them as packages alone, a virtual environment also beside its python.
    try:
        package = importlib.import_module(name)
    except Exception:
        package = None
    folders = [getattr(package, attribute, None) for attribute in ("CMAKE_BIN_DIR", "BIN_DIR")]
    for path in (*filter(None, folders), str(Path(sys.executable).parent), None):
        if found := shutil.which(name, path=path):
            return Path(found)
    raise SystemExit(
        f"fastood: no {name}, neither in the environment of {sys.executable} nor on PATH. Without build isolation the "
        "build's tools must be there: python -m pip install 'setuptools>=77' wheel cmake ninja pybind11"
    )


def find_tools() -> tuple[Path, Path]:
    """Return the paths of cmake and ninja, and say which they are.

    Raises:
        SystemExit: If one is missing or cmake is too old.
    """
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    said = subprocess.run([str(cmake), "--version"], capture_output=True, text=True).stdout
    version = re.search(r"(\d+)\.(\d+)\S*", said)
    if version is None or (int(version[1]), int(version[2])) < OLDEST_CMAKE:
        oldest = ".".join(map(str, OLDEST_CMAKE))
        raise SystemExit(
            f"fastood: cmake >= {oldest} is needed, {cmake} is {version[0] if version else 'broken'}: "
            "python -m pip install cmake"
        )
    print(f"fastood: cmake {version[0]} ({cmake}), ninja ({ninja})")
    return cmake, ninja


def run(command: list[str]) -> None:
    """Run a step of the build.

    Raises:
        SystemExit: If it fails, with what this machine lacks as far as that can be seen.
    """
    if subprocess.run(command).returncode == 0:
        return
    preflight = runpy.run_path(str(ROOT / ".ci/preflight.py"))
    missing, packages = preflight["missing"]()
    why = "\n".join(preflight["describe"](missing, packages)) if missing else "the first error above says why"
    raise SystemExit(f"\nfastood: {shlex.join(command[:2])} … failed: {why}")


class Build(build):
    """Looks for the tools before files are copied, whose names would bury the message."""

    def run(self) -> None:
        """Build."""
        find_tools()
        super().run()


class CMakeBuild(build_ext):
    """Configures and builds the CMake project, then puts `_C` where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension; there is only `fastood._C`."""
        cmake, ninja = find_tools()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # An editable install has a new temporary folder each time: with it everything would be compiled each time.
        build_temp = ROOT / "build" if self.editable_mode else Path(self.build_temp).resolve()
        folder = build_temp / f"cmake-{sys.implementation.cache_tag}"
        cache = folder / "CMakeCache.txt"
        # Of a clone that was moved: CMake would refuse it.
        if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text(encoding="utf-8"):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        configure = [
            str(cmake),
            "-S",
            str(ROOT),
            "-B",
            str(folder),
            "-G",
            "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DFASTOOD_VERSION={self.distribution.get_version()}",
            "-DFASTOOD_BUILD_TESTS=OFF",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            # The ninja cached by an earlier isolated build is gone with its temporary folder.
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            # The environment decides anew at every build, whatever an earlier configure cached.
            f"-DFASTOOD_CUDA={os.environ.get('FASTOOD_CUDA') or 'auto'}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        jobs = ["--parallel", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        run(configure)
        run([str(cmake), "--build", str(folder), *jobs])


setup(
    ext_modules=[Extension("fastood._C", sources=[])],
    cmdclass={"build": Build, "build_ext": CMakeBuild},
)
