"""Slices of tensors that processes own, stored by torch.distributed.checkpoint next to a stage's checkpoint.

A checkpoint is one file that the first process writes. Of a tensor that is divided among the processes (a DTensor) it
holds only a reference; each process writes its slice into a folder of the same step, before the file is replaced. The
file thus always refers to a complete folder. Slices are read by any number of processes.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from fastood.common.distributed import exchange
from fastood.common.division import slice_rows
from fastood.train.engine.group import outcome_of_first

REFERENCE = "fastood.slices"
"""Key of the references in a checkpoint."""


def save_slices(state: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write every slice of this process, and return the state with references in their place.

    Collective: every process must call it.

    Args:
        state: State of a stage; nested mappings and lists of numbers and tensors.
        folder: Folder of the slices, shared by all processes; files of an attempt that was killed are removed.

    Raises:
        OSError: If a process cannot write its slice; then on every process, and the folder is removed.
    """
    slices = _slices_of(state)
    if not slices:
        return dict(state)

    def make_folder() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    outcome_of_first(make_folder)
    try:
        with _named_errors(f"cannot write {folder}"):
            dcp.save(slices, checkpoint_id=folder)  # type: ignore[attr-defined]
    except (OSError, ValueError):
        if dist.get_rank() == 0:
            # On a full disk the part that was written would take the room that is needed to resume.
            shutil.rmtree(folder, ignore_errors=True)
        raise

    def reference(key: str, tensor: DTensor) -> dict[str, Any]:
        return {
            REFERENCE: folder.name,
            "key": key,
            "size": tensor.shape[0],
            "dtype": str(tensor.dtype).partition(".")[2],
        }

    stored: dict[str, Any] = _replaced(state, lambda key, value: reference(key, value) if key in slices else value)
    return stored


def gather_slices(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state with whole tensors in the first process, for a folder that other processes do not see.

    Collective: every process must call it.
    """
    whole: dict[str, Any] = _replaced(
        state, lambda key, value: gathered(value) if isinstance(value, DTensor) else value
    )
    return whole


def load_slices(state: Mapping[str, Any], folder: Path, *, device: torch.device) -> dict[str, Any]:
    """Return a state in which every reference is replaced by its tensor.

    Collective: every process must call it. With several processes a tensor is divided among them as `slice_rows`
    divides rows; a single process reads it whole.

    Args:
        state: State with references, as `save_slices` returns it.
        folder: Folder that holds the folders of the slices.
        device: Device of the process group's tensors.

    Raises:
        FileNotFoundError: If a process does not see the slices; then on every process.
        OSError: If a process cannot read them; then on every process.
        ValueError: If a file of them is missing or damaged; then on every process.
    """
    wanted = _references_of(state)
    if not wanted:
        return dict(state)
    processes = dist.get_world_size() if dist.is_initialized() else 1
    tensors = {key: _empty(reference, processes, device) for key, reference in wanted.items()}
    (name,) = {reference[REFERENCE] for reference in wanted.values()}
    sees = torch.tensor(int((folder / name / ".metadata").exists()))
    if processes > 1:
        dist.all_reduce(sees, op=dist.ReduceOp.MIN)
    if not sees:
        raise FileNotFoundError(
            f"{folder / name} is missing or incomplete, at least where one of the processes runs: it holds slices of "
            "the checkpoint, which every process reads"
        )
    _check_files(folder / name, processes)
    with warnings.catch_warnings(), _named_errors(f"cannot read {folder / name}"):
        # It warns that a single process reads what several may have written, as intended here.
        warnings.filterwarnings("ignore", module="torch.distributed.checkpoint")
        dcp.load(  # type: ignore[attr-defined]
            tensors, checkpoint_id=folder / name, no_dist=processes == 1
        )
    loaded: dict[str, Any] = _replaced(state, lambda key, value: tensors.get(key, value))
    return loaded


def _check_files(folder: Path, processes: int) -> None:
    """Check the files of slices against the checksums in them, which `dcp.load` does not; each process checks a part.

    Raises:
        ValueError: If a file is missing or damaged; then on every process.
    """
    rank, problem = dist.get_rank() if processes > 1 else 0, None
    try:
        stored = dcp.FileSystemReader(folder).read_metadata().storage_data  # type: ignore[attr-defined]
        places = sorted({(place.relative_path, place.offset, place.length) for place in stored.values()})
        for path, offset, length in places[rank::processes]:
            with (folder / path).open("rb") as file:
                file.seek(offset)
                part = file.read(length)
            if len(part) < length or ZipFile(BytesIO(part)).testzip() is not None:
                raise BadZipFile
    except BadZipFile:
        problem = f"{path} has other bytes than were written"
    except Exception as error:  # of any type: the metadata are a pickle, whose damage raises what its bytes happen to
        problem = f"{type(error).__name__}: {error}"
    every = exchange(problem) if processes > 1 else [problem]
    for found in every:
        if found is not None:
            raise ValueError(
                f"{folder} is damaged ({found}): it holds slices of the checkpoint next to it; restore the folder, or "
                "remove that checkpoint to train its stage again"
            )


@contextmanager
def _named_errors(doing: str) -> Iterator[None]:
    """Turn the error of torch.distributed.checkpoint, which is no `Exception`, into one that names the cause.

    Raises:
        OSError: If the error of the first process that has one is an OSError.
        ValueError: If it is another.
    """
    try:
        yield
    except dcp.CheckpointException as error:  # type: ignore[attr-defined]
        rank, (cause, _) = min(error.failures.items())
        text = f"{doing}: process {rank}: {getattr(cause, 'strerror', None) or cause}"
        if isinstance(cause, OSError):
            raise OSError(cause.errno, text) from None
        raise ValueError(text) from None


def remove_other_slices(folder: Path, stage: str, keep: Mapping[str, Any]) -> None:
    """Remove the slices of a stage's earlier checkpoints, of which `keep`, the state just stored, refers to none."""
    kept = {reference[REFERENCE] for reference in _references_of(keep).values()}
    for old in folder.glob(f"{stage}.slices-*"):
        if old.name not in kept:
            shutil.rmtree(old, ignore_errors=True)


def _empty(reference: Mapping[str, Any], processes: int, device: torch.device) -> Tensor:
    size, dtype = reference["size"], getattr(torch, reference["dtype"])
    if processes == 1:
        return torch.empty(size, dtype=dtype)
    local = torch.empty(len(slice_rows(size, dist.get_rank(), processes)), dtype=dtype, device=device)
    mesh = DeviceMesh(device.type, torch.arange(processes))
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=torch.Size([size]), stride=(1,))


def _slices_of(state: Mapping[str, Any]) -> dict[str, DTensor]:
    found: dict[str, DTensor] = {}

    def note(key: str, value: Any) -> Any:
        if isinstance(value, DTensor):
            found[key] = value
        return value

    _replaced(state, note)
    return found


def _references_of(state: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}

    def note(key: str, value: Any) -> Any:
        if isinstance(value, Mapping) and REFERENCE in value:
            found[key] = value
        return value

    _replaced(state, note)
    return found


def _replaced(value: Any, replace: Callable[[str, Any], Any], key: str = "") -> Any:
    """Return nested mappings and lists with `replace(key, value)` for every leaf; keys are joined with dots."""
    if isinstance(value, Mapping) and REFERENCE not in value:
        return {name: _replaced(item, replace, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, replace, f"{key}.{number}") for number, item in enumerate(value)]
    return replace(key, value)


def gathered(tensor: Tensor) -> Tensor:
    """Return the whole of a divided tensor `[N]` on the CPU of the first process, and an empty one on others.

    Collective: every process must call it. The first process holds the whole and one slice at a time. Other tensors are
    returned as they are.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    local, rank = tensor.to_local().contiguous(), dist.get_rank()
    if rank > 0:
        if local.numel():
            dist.send(local, 0)
        return torch.empty(0, dtype=tensor.dtype)
    size = tensor.shape[0]
    whole = torch.empty(size, dtype=tensor.dtype)
    whole[: local.numel()] = local
    for begin in range(local.numel(), size, local.numel()):
        part = local.new_empty(min(local.numel(), size - begin))
        dist.recv(part, begin // local.numel())
        whole[begin : begin + part.numel()] = part
    return whole
