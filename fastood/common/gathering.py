"""Rows of all processes on every process, exchanged as tensors; processes may have unequal numbers of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.distributed import check_in_group

__all__ = ["PIECE_BYTES", "broadcast_tensors", "gather_rows"]

PIECE_BYTES = 1 << 26
"""Bytes that one collective receives from all processes together: 64 MiB."""

_DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)
_MOST_AXES = 8
_ABSENT, _INVALID = -1, -2


class _Shard(NamedTuple):
    """Properties of the rows that one process has."""

    dtype: int
    """Number in `_DTYPES`; `_ABSENT` without a tensor, `_INVALID` for an object that cannot be sent."""
    is_cuda: bool
    rows: int
    shape: tuple[int, ...]
    """Shape of a row."""


def gather_rows(
    rows: Mapping[str, Tensor | None], group: dist.ProcessGroup | None = None, *, paired: bool = False
) -> dict[str, Tensor]:
    """Return the rows of all processes, in the order of their ranks, on every process.

    Collective: all processes of the group call it with the same names in the same order. Tensors are sent as bytes by
    `all_gather_into_tensor`, in pieces of `PIECE_BYTES`, which bounds the memory beyond that of the result.

    Args:
        rows: Tensors `[N, ...]` by name; N may differ between processes and be 0. None, or a tensor without rows, for a
            process that has no rows and takes dtype and shape of the others.
        group: Process group; None for the default group.
        paired: Whether all tensors of a process must have the same number of rows.

    Returns:
        Tensors `[sum of N, ...]` by name, on the device of the tensor of this process, or on the CPU without a tensor.
        Bits are those of the inputs. If no process has a tensor, float32 `[0]`.

    Raises:
        RuntimeError: If there is no process group.
        ValueError: If processes differ in dtype or in the shape of a row, if an argument is not a tensor with a first
            axis, if the numbers of rows differ and `paired` is set, or if this process is not in `group`. Except for
            the last, every process raises, before any row is sent.
    """
    check_in_group(group)
    wire = _header_device(group)
    headers = torch.tensor([_header(values) for values in rows.values()], dtype=torch.int64, device=wire)
    every = headers.new_empty(dist.get_world_size(group) * len(headers), headers.shape[1])
    dist.all_gather_into_tensor(every, headers, group=group)
    found = [_shard(header) for header in every.tolist()]
    shards = [found[begin : begin + len(rows)] for begin in range(0, len(found), len(rows))]
    common = {name: _agreed(name, [of_process[i] for of_process in shards]) for i, name in enumerate(rows)}
    if paired:
        _check_paired(list(rows), shards)
    return {
        name: _gathered(values, [of_process[i] for of_process in shards], common[name], group)
        for i, (name, values) in enumerate(rows.items())
    }


def broadcast_tensors(tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Copy the tensors of the first process of a group into those of the others, in place.

    Collective: all processes call it with tensors of the same names, shapes and dtypes, on any device.

    Args:
        tensors: Tensors by name, as `state_dict` returns them.
        group: Process group; None for the default group.

    Raises:
        RuntimeError: If there is no process group.
        ValueError: If this process is not in `group`.
    """
    check_in_group(group)
    wire, source = _header_device(group), dist.get_global_rank(group or dist.group.WORLD, 0)  # type: ignore[arg-type]
    for tensor in tensors.values():
        if tensor.numel() == 0:
            continue
        sent = tensor.detach().to(wire).contiguous().reshape(-1)
        dist.broadcast(sent.view(torch.uint8), src=source, group=group)
        tensor.detach().copy_(sent.view(tensor.shape))


def _header_device(group: dist.ProcessGroup | None) -> torch.device:
    """Return the device through which data on any device can be exchanged: the CPU, except with NCCL alone."""
    if "cpu:" in dist.get_backend_config(group):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _data_device(group: dist.ProcessGroup | None, shards: list[_Shard]) -> torch.device:
    """Return the device through which rows are sent: that of all rows if it has a fast backend."""
    has_rows = [shard for shard in shards if shard.rows > 0]
    if "cuda:nccl" in dist.get_backend_config(group) and all(shard.is_cuda for shard in has_rows):
        return torch.device("cuda", torch.cuda.current_device())
    return _header_device(group)


def _header(values: object) -> list[int]:
    """Return a `_Shard` as numbers: dtype, device, rows, axes of a row and their lengths."""
    header = [_ABSENT, 0, 0, 0, *([0] * _MOST_AXES)]
    if values is None:
        return header
    if not isinstance(values, Tensor) or values.dtype not in _DTYPES or not 1 <= values.dim() <= _MOST_AXES:
        return [_INVALID, *header[1:]]
    shape = values.shape[1:]
    header[:4] = [_DTYPES.index(values.dtype), int(values.is_cuda), len(values), len(shape)]
    header[4 : 4 + len(shape)] = shape
    return header


def _shard(header: list[int]) -> _Shard:
    return _Shard(header[0], bool(header[1]), header[2], tuple(header[4 : 4 + header[3]]))


def _agreed(name: str, shards: list[_Shard]) -> _Shard:
    """Return the shard that gives dtype and shape, or raise if the others differ from it."""
    for rank, shard in enumerate(shards):
        if shard.dtype == _INVALID:
            raise ValueError(
                f"{name} must be a tensor [N, ...] of booleans, integers or floating-point numbers on every process, "
                f"got something else on rank {rank}"
            )
    present = [rank for rank, shard in enumerate(shards) if shard.dtype != _ABSENT]
    with_rows = [rank for rank in present if shards[rank].rows > 0]
    if not present:
        return _Shard(_DTYPES.index(torch.float32), False, 0, ())
    first = (with_rows or present)[0]
    for rank in with_rows:
        one, other = shards[first], shards[rank]
        if other.dtype != one.dtype:
            raise ValueError(
                f"{name} must have the same dtype on every process, got {_DTYPES[one.dtype]} on rank {first} and "
                f"{_DTYPES[other.dtype]} on rank {rank}"
            )
        if other.shape != one.shape:
            raise ValueError(
                f"{name} must have rows of the same shape on every process, got {list(one.shape)} on rank {first} and "
                f"{list(other.shape)} on rank {rank}"
            )
    return shards[first]


def _check_paired(names: list[str], shards: list[list[_Shard]]) -> None:
    for rank, of_process in enumerate(shards):
        for name, shard in zip(names, of_process, strict=True):
            if shard.rows != of_process[0].rows:
                raise ValueError(
                    f"{name} must have as many rows as {names[0]} on every process, got {shard.rows} and "
                    f"{of_process[0].rows} on rank {rank}"
                )


def _gathered(values: Tensor | None, shards: list[_Shard], common: _Shard, group: dist.ProcessGroup | None) -> Tensor:
    home = torch.device("cpu") if values is None else values.device
    dtype, counts = _DTYPES[common.dtype], [shard.rows for shard in shards]
    whole = torch.empty(sum(counts), *common.shape, dtype=dtype, device=home)
    row = whole[:1].numel() * dtype.itemsize if whole.numel() else 0
    if row == 0:
        return whole
    wire = _data_device(group, shards)
    # Bytes, because gloo and NCCL do not send every dtype.
    own = torch.empty(0, dtype=torch.uint8, device=home)
    if values is not None and len(values) > 0:
        own = values.detach().contiguous().reshape(-1).view(torch.uint8)
    parts = torch.split(whole.view(-1).view(torch.uint8), [count * row for count in counts])
    longest, piece_bytes = max(counts) * row, max(1, PIECE_BYTES // len(counts))
    for begin in range(0, longest, piece_bytes):
        # Shorter parts are padded: a collective takes as many bytes of every process.
        size = min(piece_bytes, longest - begin)
        sent = torch.zeros(size, dtype=torch.uint8, device=wire)
        piece = own[begin : begin + size]
        sent[: len(piece)].copy_(piece)
        received = sent.new_empty(len(parts), size)
        dist.all_gather_into_tensor(received.view(-1), sent, group=group)
        for part, of_process in zip(parts, received, strict=True):
            place = part[begin : begin + size]
            place.copy_(of_process[: len(place)])
    return whole
