"""Builds fastood._C with CMake and ninja; CMakeLists.txt is the only list of sources.

Environment: FASTOOD_CUDA=auto|0|1, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS, CMAKE_ARGS (extra -D options).
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures and builds the CMake project, then puts `_C` where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension; there is only `fastood._C`."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # An editable install has a new temporary folder each time: with it everything would be compiled each time.
        build_temp = ROOT / "build" if self.editable_mode else Path(self.build_temp).resolve()
        build = build_temp / f"cmake-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DFASTOOD_VERSION={self.distribution.get_version()}",
            "-DFASTOOD_BUILD_TESTS=OFF",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            # The environment decides anew at every build, whatever an earlier configure cached.
            f"-DFASTOOD_CUDA={os.environ.get('FASTOOD_CUDA') or 'auto'}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        # Of this environment: the ninja cached by an earlier isolated build is gone with its temporary folder.
        if ninja := shutil.which("ninja"):
            configure.append(f"-DCMAKE_MAKE_PROGRAM={ninja}")
        jobs = ["--parallel", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), *jobs], check=True)


setup(ext_modules=[Extension("fastood._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
