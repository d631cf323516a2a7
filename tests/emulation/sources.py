"""The CUDA sources of csrc/: which files they are, and which folders' kernels a file is a part of."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"

_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)


def is_device_code(path: str) -> bool:
    """Return whether a file of csrc/ has code of kernels, of their launchers or of the ops on CUDA."""
    name = Path(path).name
    return name.endswith((".cu", ".cuh")) or name == "op_cuda.cpp" or (name.startswith("cuda") and name.endswith(".h"))


def relative(path: str) -> str | None:
    """Return `csrc/…` of a path that has such a part and exists here, or None."""
    parts = Path(path).parts
    if "csrc" not in parts:
        return None
    last = len(parts) - 1 - parts[::-1].index("csrc")
    inside = Path(*parts[last:])
    return str(inside) if (ROOT / inside).is_file() else None


@cache
def _included(path: Path) -> frozenset[Path]:
    """Return the file and all that it includes, directly or not."""
    found = {path}
    for name in _INCLUDE.findall(path.read_text()):
        target = (path.parent / name).resolve()
        if target.is_file() and target.is_relative_to(CSRC):
            found |= _included(target)
    return frozenset(found)


@cache
def folders_of(file: str) -> frozenset[str]:
    """Return the folders of csrc/ whose kernels or CUDA ops a file, `csrc/…`, is compiled into."""
    path = (ROOT / file).resolve()
    users = [*CSRC.glob("*/*.cu"), *CSRC.glob("*/op_cuda.cpp")]
    return frozenset(user.parent.name for user in users if path in _included(user.resolve()))


def line_text(file: str, line: int) -> str:
    """Return a line of a file, `csrc/…`, without indentation."""
    return _lines(file)[line - 1]


def place_text(file: str, line: int) -> str:
    """Return a line with as few of its neighbours as make it unique in its file, joined by ` ¶ `.

    Unlike a line number it stays valid when other parts of the file change.
    """
    lines = _lines(file)
    for before, after in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (3, 3), (5, 5)):
        size = before + 1 + after
        windows = [lines[k : k + size] for k in range(len(lines) - size + 1)]
        window = lines[max(0, line - 1 - before) : line + after]
        if windows.count(window) == 1:
            return " ¶ ".join(window)
    return f"{lines[line - 1]} ¶ line {line}"


@cache
def _lines(file: str) -> list[str]:
    return [line.strip() for line in (ROOT / file).read_text().splitlines()]
