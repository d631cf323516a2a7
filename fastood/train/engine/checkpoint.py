"""The checkpoints of a run's stages."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
import torch.distributed as dist

from fastood.common.config_checks import shorten
from fastood.common.files import write_atomically
from fastood.train.engine.group import outcome_of_first
from fastood.train.engine.slices import gather_slices, remove_other_slices, save_slices


class CheckpointFolder:
    """A folder with one file per stage, which holds the latest state of that stage.

    Args:
        folder: Folder of the files; created when the first is written.

    Attributes:
        is_shared: Whether every process sees the folder, so that each can store its slices of divided tensors there.

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
        self.is_shared = True

    def path(self, stage: str) -> Path:
        """File of one stage."""
        return self.folder / f"{stage}.pt"

    def save(self, stage: str, state: Mapping[str, Any]) -> None:
        """Replace the stage's checkpoint.

        Raises:
            OSError: If it cannot be written; the error names the file and, for a full disk, the bytes needed and free.
        """
        write_atomically(self.path(stage), lambda file: torch.save(dict(state), file))

    def save_together(self, stage: str, state: Mapping[str, Any], *, step: int) -> None:
        """Replace the stage's checkpoint; the first process writes it, each process its slices of divided tensors.

        Collective: every process must call it. If the processes do not share the folder, the first one gathers the
        slices and writes them.

        Args:
            stage: Name of the stage.
            state: State of the stage.
            step: Steps done, which names the folder of the slices.

        Raises:
            OSError: If a file cannot be written; then on every process.
        """
        slices = self.folder / f"{stage}.slices-{step:09}"
        stored = save_slices(state, slices) if self.is_shared else gather_slices(state)

        def save() -> None:
            try:
                self.save(stage, stored)
            except OSError:
                # On a full disk they would take the room that is needed to resume.
                shutil.rmtree(slices, ignore_errors=True)
                raise
            remove_other_slices(self.folder, stage, stored)

        if dist.is_initialized():
            outcome_of_first(save)
        else:
            save()

    def load(self, stage: str) -> dict[str, Any] | None:
        """Return the stage's checkpoint on the CPU, or None before its first.

        Raises:
            ValueError: If the file is damaged.
        """
        path = self.path(stage)
        if not path.exists():
            return None
        with path.open("rb") as file:
            try:
                # torch.load does not verify the checksums that torch.save writes.
                if (member := ZipFile(file).testzip()) is not None:
                    raise ValueError(f"{path} is damaged: the checksum of {member} in it is wrong")
                file.seek(0)
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            # A truncated file makes torch.load seek to before its start: an OSError.
            except (BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError, UnpicklingError) as error:
                raise ValueError(f"{path} is damaged: {summary(error)}") from None
        if not isinstance(state, dict):
            raise ValueError(f"{path} is damaged: it must hold the state of a stage, got {type(state).__name__}")
        return state


def summary(error: Exception) -> str:
    r"""Return the message of an error in one short line; PyTorch's can be pages, with advice for its own callers.

    Example:
        >>> summary(KeyError("step"))
        "KeyError: 'step'"
        >>> summary(RuntimeError("Error(s) in loading state_dict:\n  size mismatch for head.weight"))
        'Error(s) in loading state_dict: size mismatch for head.weight'
    """
    text = " ".join(str(error).split())
    if isinstance(error, UnpicklingError):
        text = "it holds other objects than tensors and numbers"
    elif isinstance(error, KeyError | AttributeError | IndexError | EOFError):
        text = f"{type(error).__name__}: {text}"
    return shorten(text)
