"""Optional packages: errors for missing ones, with the command that installs them.

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

__all__ = [
    "COMMANDS",
    "MissingPackageError",
    "describe",
    "install_command",
    "missing",
    "needed_for",
    "require_command",
    "requirements",
    "running_command",
]

COMMANDS = {"fastood.train": "train", "fastood.evaluate": "train", "fastood.data": "train"}
"""Extra that each command `python -m MODULE` needs."""
_MODULES = {
    "lightning-fabric": "lightning_fabric",
    "nvidia-dali-cuda130": "nvidia.dali",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
"""Import names of packages, where they differ from the name of the package."""


class MissingPackageError(ModuleNotFoundError):
    """Error for a package that is not installed; the message has the command that installs it."""


def requirements(extra: str) -> list[str]:
    """Return the requirements of an extra of fastood, such as "lightning-fabric>=2.4".

    Example:
        >>> "tyro>=0.9" in requirements("train")
        True
    """
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.exists():
        extras = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        return list(extras[extra])
    parts = [line.partition(";") for line in metadata.requires("fastood") or []]
    of_extra = re.compile(rf"extra == ['\"]{extra}['\"]")
    return [requirement.strip() for requirement, _, marker in parts if of_extra.search(marker)]


def missing(extra: str) -> list[str]:
    """Return the requirements of an extra that cannot be imported.

    Example:
        >>> missing("train")
        []
    """
    return [requirement for requirement in requirements(extra) if not _importable(_module(requirement))]


def install_command(packages: Iterable[str]) -> str:
    """Return the command that installs packages into the environment of this process.

    Example:
        >>> install_command(["tyro>=0.9"])  # doctest: +ELLIPSIS
        "... -m pip install 'tyro>=0.9'"
    """
    return shlex.join([sys.executable or "python", "-m", "pip", "install", *packages])


def describe(what: str, wanted: Iterable[str]) -> str:
    """Return the error message for missing packages, with the command that installs them.

    Example:
        >>> describe("Detector.save", ["safetensors"])  # doctest: +ELLIPSIS
        'Detector.save needs safetensors, not installed here: ... -m pip install safetensors'
    """
    wanted = list(wanted)
    names = ", ".join(_name(requirement) for requirement in wanted)
    return f"{what} needs {names}, not installed here: {install_command(wanted)}"


@contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Turn a failing import of a package of an extra, within the context, into a MissingPackageError.

    Args:
        what: Name of the function that needs the package, such as "Detector.save".

    Raises:
        MissingPackageError: If the import of a package of an extra fails.

    Example:
        >>> with needed_for("Detector.save"):
        ...     from safetensors.torch import save
    """
    try:
        yield
    except ModuleNotFoundError as error:
        top = (error.name or "").partition(".")[0]
        by_module = {_module(requirement): requirement for requirement in requirements("train")}
        if top not in by_module or isinstance(error, MissingPackageError):
            raise
        requirement = by_module[top]
        raise MissingPackageError(describe(what, [requirement]), name=error.name) from error


def running_command() -> str | None:
    """Return the module that `python -m` is about to run; None in any other process.

    While Python searches for the module, which imports its parent packages, `sys.argv` begins with "-m".
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
    """Exit if this is a command of fastood and packages are missing, with an installation command for an error.

    Raises:
        SystemExit: If this is `python -m fastood.…` and a package is missing.
    """
    command = running_command()
    # Without torch it is probably the wrong Python: fastood.ops._extension reports that.
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
