"""Packages that only parts of fastood need: what is said where one is missing.

Needs neither torch nor numpy.
"""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

COMMANDS = {"fastood.train": "train", "fastood.evaluate": "train", "fastood.data": "train"}
"""Extra of every module that is called by `python -m`."""
_MODULES = {
    "nvidia-dali-cuda130": "nvidia.dali",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
"""Names by which packages are imported, where it is not their own."""


class MissingPackageError(ModuleNotFoundError):
    """A package that fastood needs here is not installed; the message has the command that installs it."""


def requirements(extra: str) -> list[str]:
    """Return what an extra of fastood requires, such as "lightning>=2.4".

    Example:
        >>> "tyro>=0.9" in requirements("train")
        True
    """
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.exists():
        extras = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        return list(extras[extra])
    parts = [line.partition(";") for line in metadata.requires("fastood") or []]
    wanted = re.compile(rf"extra == ['\"]{extra}['\"]")
    return [requirement.strip() for requirement, _, marker in parts if wanted.search(marker)]


def missing(extra: str) -> list[str]:
    """Return the requirements of an extra that cannot be imported.

    Example:
        >>> missing("train")
        []
    """
    return [requirement for requirement in requirements(extra) if not _importable(_module(requirement))]


def install_command(wanted: Iterable[str]) -> str:
    """Return the command that installs packages where this process looks for them.

    Example:
        >>> install_command(["tyro>=0.9"])  # doctest: +ELLIPSIS
        "... -m pip install 'tyro>=0.9'"
    """
    return shlex.join([sys.executable or "python", "-m", "pip", "install", *wanted])


def describe(what: str, wanted: Iterable[str]) -> str:
    """Return the sentence that says what needs which packages, and the command that installs them.

    Example:
        >>> describe("Detector.save", ["safetensors"])  # doctest: +ELLIPSIS
        'Detector.save needs safetensors, not installed here: ... -m pip install safetensors'
    """
    wanted = list(wanted)
    names = ", ".join(_name(requirement) for requirement in wanted)
    return f"{what} needs {names}, not installed here: {install_command(wanted)}"


@contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Say what needs a package, and how it is installed, where an import of it fails.

    Args:
        what: What is called, such as "Detector.save".

    Raises:
        MissingPackageError: If a package of an extra is missing.

    Example:
        >>> with needed_for("Detector.save"):
        ...     from safetensors.torch import save
    """
    try:
        yield
    except ModuleNotFoundError as error:
        top = (error.name or "").partition(".")[0]
        known = {_module(requirement): requirement for requirement in requirements("train")}
        if top not in known or isinstance(error, MissingPackageError):
            raise
        requirement = known[top]
        raise MissingPackageError(describe(what, [requirement]), name=error.name) from error


def running_command() -> str | None:
    """Return the module that `python -m` is looking up, None in any other process.

    While Python looks for the module, which imports its parent packages, `sys.argv` begins with "-m".
    """
    if sys.argv[:1] != ["-m"]:
        return None
    for position, option in enumerate(sys.orig_argv[1:], start=2):
        if re.fullmatch(r"-[a-zA-Z]*m", option):
            return sys.orig_argv[position]
        if option.startswith("-m"):
            return option.removeprefix("-m")
    return None


def require_command() -> None:
    """End a command of fastood that lacks packages, with the command that installs them in place of a traceback.

    Raises:
        SystemExit: If this is `python -m fastood.…` and something is missing.
    """
    command = running_command()
    # Without torch this is the wrong Python altogether, which fastood.ops._extension says.
    if command in COMMANDS and _importable("torch") and (wanted := missing(COMMANDS[command])):
        sys.exit(f"error: {describe(f'python -m {command}', wanted)}")


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _module(requirement: str) -> str:
    name = _name(requirement)
    return _MODULES.get(name, name)


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False
