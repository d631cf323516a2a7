"""Files that are whole or absent, and the checkpoints of a run's stages."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one, never a part.

    Args:
        path: The file; its folder is made.
        write: Called with the open temporary file beside it.

    Raises:
        OSError: If the folder cannot be written; the old file is then untouched.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> write_atomically(path, lambda file: file.write(b"whole"))
        >>> path.read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name as one safetensors file, whole or not at all."""
    data = safetensors_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_atomically(path, lambda file: file.write(data))


class CheckpointFolder:
    """One file per stage, always the latest state of that stage.

    Args:
        folder: Where the files lie; made when the first is written.

    Example:
        >>> import tempfile
        >>> checkpoints = CheckpointFolder(Path(tempfile.mkdtemp()))
        >>> checkpoints.load("pretrain") is None
        True
        >>> checkpoints.save("pretrain", {"step": 3})
        >>> checkpoints.load("pretrain")
        {'step': 3}
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, stage: str) -> Path:
        """File of one stage."""
        return self.folder / f"{stage}.pt"

    def save(self, stage: str, state: Mapping[str, Any]) -> None:
        """Replace the stage's checkpoint."""
        write_atomically(self.path(stage), lambda file: torch.save(dict(state), file))

    def load(self, stage: str) -> dict[str, Any] | None:
        """The stage's checkpoint on the CPU, or None before its first."""
        path = self.path(stage)
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
