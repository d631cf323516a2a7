"""The checkpoints of a run's stages."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from fastood.files import write_atomically


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
        """The stage's checkpoint on the CPU, or None before its first.

        Raises:
            ValueError: If the file is damaged.
        """
        path = self.path(stage)
        if not path.exists():
            return None
        with path.open("rb") as file:
            try:
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            # A truncated file makes PyTorch seek to before its start: an OSError.
            except (EOFError, OSError, RuntimeError, UnpicklingError) as error:
                raise ValueError(f"{path} is damaged: {error}") from None
        return state
