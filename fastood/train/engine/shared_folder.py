"""Test of whether processes on several machines see one folder."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from fastood.train.engine.processes import from_first_process, of_every_process

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def is_folder_shared(folder: Path, fabric: Fabric) -> bool:
    """Return whether every process finds in a folder what the first process writes there; the same on every process.

    Collective: every process must call it. The first process creates the folder, and leaves nothing in it.

    Args:
        folder: The folder; a relative path is relative to the current directory of each process.
        fabric: The group.

    Raises:
        OSError: If the first process cannot write the folder; then on every process.
    """
    return all(see_folder(folder, fabric))


def see_folder(folder: Path, fabric: Fabric) -> list[bool]:
    """Return for each process, by rank, whether it finds in a folder what the first process writes there.

    Collective, as `is_folder_shared`, which has the arguments and errors.
    """
    if fabric.world_size == 1:
        return [True]

    def write() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        # A new name: no client of a network file system has cached that it does not exist.
        name = f".shared.{secrets.token_hex(8)}.tmp"
        (folder / name).touch()
        return name

    token = folder / from_first_process(write, fabric)
    try:
        return of_every_process(token.exists(), fabric)
    finally:
        if fabric.is_global_zero:
            token.unlink(missing_ok=True)
