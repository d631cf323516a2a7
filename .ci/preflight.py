"""Looks for what `make` needs and cannot install, in a second, before anything is downloaded.

Runs on the interpreter that the environment is to be made with. Any from 3.6 on can say that it is too old: that is
why annotations are strings.
"""

import importlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

OLDEST = (3, 11)
GIGABYTES = 7
"""Disk that the environment takes once it is there."""
PROGRAM = """
#include <bit>
#include <concepts>
#include <span>
template <std::integral T> T zeros(std::span<T const> values) { return std::countl_zero(values[0]); }
int main() { unsigned const values[] = {1}; return static_cast<int>(zeros<unsigned>(values)) - 31; }
"""


def newer_python() -> "str | None":
    """Return the command of an interpreter on PATH that is new enough, or None."""
    for minor in range(14, OLDEST[1] - 1, -1):
        name = f"python3.{minor}"
        # Run, not looked up alone: a version manager has commands for versions that it does not have.
        if shutil.which(name) and subprocess.run([name, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0:
            return name
    return None


def header_problem() -> "str | None":
    """Return where Python.h is missing, or None."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.exists() else f"Python's headers: {header} is not there"


def venv_problem() -> "str | None":
    """Return which module for making environments is missing, or None."""
    for name in ("venv", "ensurepip"):
        try:
            module = importlib.import_module(name)
            # Distributions split it off, or its wheels of pip.
            if name == "ensurepip":
                module.version()
        except Exception as error:
            return f"a complete venv: {sys.executable} has no working {name} ({error})"
    return None


def compiler_problem() -> "str | None":
    """Return why no C++20 program could be built, or None; the compiler is the one that CMake takes."""
    wanted = os.environ.get("CXX")
    names = [wanted] if wanted else ["c++", "g++", "clang++"]
    commands = [command for command in map(shlex.split, names) if shutil.which(command[0])]
    if not commands:
        return f"a C++20 compiler: no {' or '.join(names)} on PATH" + (", which CXX names" if wanted else "")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "program.cpp"
        source.write_text(PROGRAM, encoding="utf-8")
        command = [*commands[0], "-std=c++20", str(source), "-o", str(Path(folder) / "program")]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
        )
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stdout.splitlines() if "error" in line.lower()] or [
        f"exit {done.returncode}"
    ]
    return f"a C++20 compiler: {' '.join(commands[0])} cannot build a program of C++20 ({lines[0]})"


def disk_problem(folder: Path) -> "str | None":
    """Return how little space there is for the environment, or None."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    return f"{GIGABYTES} GB of disk, better 10: {free:.1f} are free in {folder}" if free < GIGABYTES else None


def remedies(packages: "list[tuple[str, str]]") -> "list[str]":
    """Return one line per family of distributions, or that of this one alone, where it is known.

    Args:
        packages: Names of Debian's packages, each beside Fedora's.
    """
    release = Path("/etc/os-release")
    system = release.read_text(encoding="utf-8", errors="replace") if release.exists() else ""
    this = {
        word
        for line in system.splitlines()
        if line.startswith(("ID=", "ID_LIKE="))
        for word in line.partition("=")[2].strip("\"'").split()
    }
    apt = "  Debian, Ubuntu: sudo apt install " + " ".join(debian for debian, _ in packages)
    dnf = "  Fedora, RHEL:   sudo dnf install " + " ".join(dict.fromkeys(fedora for _, fedora in packages))
    if this & {"debian", "ubuntu"}:
        return [apt]
    return [dnf] if this & {"fedora", "rhel", "centos"} else [apt, dnf]


def missing(venv: "str | None" = None) -> "tuple[list[str], list[tuple[str, str]]]":
    """Return what is missing, and the packages that bring it.

    Args:
        venv: Folder of the environment to be made; None to build into one that is there.

    Returns:
        A sentence for each thing, and pairs of Debian's and Fedora's names of packages.
    """
    if platform.system() != "Linux":
        return [f"Linux: fastood builds nowhere else so far, and this is {platform.system()}"], []
    found = []
    if sys.version_info < OLDEST:
        # Headers and modules of an interpreter that is too old say nothing of the one that takes its place.
        python = newer_python()
        name = f"python3.{OLDEST[1]}"
        packages = [] if python else [(name, name), (f"{name}-dev", f"{name}-devel"), (f"{name}-venv", name)]
        sentence = f"Python >= 3.11: {sys.executable} is {platform.python_version()}"
        found.append((f"{sentence}; give PYTHON={python or name}", packages))
    else:
        name = f"python3.{sys.version_info[1]}"
        found.append((header_problem(), [(f"{name}-dev", f"{name}-devel")]))
        if venv is not None:
            found.append((venv_problem(), [(f"{name}-venv", name)]))
    found.append((compiler_problem(), [("g++", "gcc-c++")]))
    if venv is not None:
        found.append((disk_problem(Path(venv).absolute()), []))
    return (
        [sentence for sentence, _ in found if sentence],
        [pair for sentence, packages in found if sentence for pair in packages],
    )


def describe(sentences: "list[str]", packages: "list[tuple[str, str]]") -> "list[str]":
    """Return the lines that say what is missing and how to get it."""
    install = ["Install", *remedies(packages)] if packages else []
    return ["fastood needs what is not here:", *(f"  {sentence}" for sentence in sentences), *install]


if __name__ == "__main__":
    what, where = missing(sys.argv[1])
    if what:
        print("\n".join(describe(what, where)))
        sys.exit("then give the same command again")
