"""Exchange of the batches of all ranks before an ascent step, so that every replica of a pool takes one step."""

from __future__ import annotations

import struct

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.distributed import check_alike, exchange
from fastood.common.transfer import to_device
from fastood.ops import background_pool as ops
from fastood.ops._arguments import shown
from fastood.ops._arrays import Values, as_tensor
from fastood.samplers import pool_checks
from fastood.samplers.digests import generator_digest

__all__ = ["batch_tensors", "check_ranks", "checked_place", "gather_batch", "ranks_of_group"]

_HEADER = 8
"""Numbers in front of a batch: validity, count, mode, digest of the generator, step size, and three sums."""
_ROOM = 256
"""Examples of a process that the first exchange has room for: a constant, so that all processes send equally much."""
_MODES = ("exact", "sparse")


def ranks_of_group() -> tuple[int, int]:
    """Return rank and number of processes of the default process group; 0 and 1 without a group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def checked_place(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    """Return rank and number of ranks after checks; None if both are None, for those of the process group.

    Raises:
        ValueError: If one of them is missing, not an int or out of range.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank and world_size must be given together, got {shown(rank)} and {shown(world_size)}")
    if rank is None or world_size is None:
        return None
    world_size = pool_checks.integer("world_size", world_size)
    wanted = f"an int in 0 … {world_size - 1}"
    return pool_checks.integer("rank", rank, 0, world_size - 1, wanted=wanted), world_size


def check_ranks(rank: int, alike: dict[str, object], *, device: torch.device) -> None:
    """Raise ValueError on every process if a value differs between the processes, or two have one rank. A collective.

    Args:
        rank: Rank of this process among those that divide the draws.
        alike: Values that must be equal on every process, by the name that an error gives them.
        device: Device of the pool.
    """
    every = exchange((rank, alike), device=device)
    for name in alike:
        check_alike(name, [values[name] for _, values in every])
    ranks = [other for other, _ in every]
    if len(set(ranks)) < len(ranks):
        raise ValueError(f"rank must differ between processes, got {ranks}")


def batch_tensors(index: Values, per_sample_loss: Values, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return index and losses as tensors on `device`; arrays and lists of integers become int64, losses float64.

    Args:
        index: Tensor, array or list of integers.
        per_sample_loss: Tensor, array or list of numbers.
        device: Device of the pool.

    Raises:
        TypeError: If an argument is not a tensor, array or list of numbers.
    """
    if not isinstance(index, Tensor):
        index = as_tensor("index", index)
        # An empty list has no integers that would show its type.
        index = index if index.is_floating_point() and index.numel() else index.long()
    if not isinstance(per_sample_loss, Tensor):
        per_sample_loss = as_tensor("per_sample_loss", per_sample_loss).double()
    return to_device(index, device), to_device(per_sample_loss.detach(), device)


def gather_batch(
    index: Values,
    per_sample_loss: Values,
    *,
    lr: float,
    mode: str,
    generator: torch.Generator | None,
    stats: Tensor,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return the batches of all processes of the default group, joined in the order of the ranks.

    One collective, which the host waits for; a second one if the batch of a process has more than 256 examples.

    Args:
        index: Indices of this process, int64 `[b]`; b differs between processes and may be 0.
        per_sample_loss: Losses of this process, `[b]`.
        lr: Step size, equal on every process.
        mode: "exact" or "sparse", equal on every process.
        generator: Generator whose state must be equal on every process; None if it may differ.
        stats: Sums over the pool, float64 `[3]`, equal on every process.
        device: Device of the pool.

    Returns:
        index: int64 `[B]`, on `device`.
        loss: float64 `[B]`, on `device`.

    Raises:
        TypeError: If `index` or `per_sample_loss` of this process has another type.
        ValueError: If an argument of a process is out of range, an argument or the generator differs between
            processes, or every batch is empty. Every process raises.
    """
    wire = _device_of_group(device)
    trouble: Exception | None = None
    header = [0, 0, 0, 0, 0]
    loss = torch.zeros(0, dtype=ops.LOSS_DTYPE, device=wire)
    positions = torch.zeros(0, dtype=torch.int64, device=wire)
    try:
        index, per_sample_loss = batch_tensors(index, per_sample_loss, wire)
        rate = pool_checks.checked_ascent(index, per_sample_loss, lr, mode, empty=True)
        positions, loss = index, per_sample_loss.to(ops.LOSS_DTYPE)
        of_generator = 0 if generator is None else int(generator_digest(generator), 16)
        header = [1, len(positions), _MODES.index(mode), of_generator, _bits(rate)]
    except Exception as error:  # of any type, because the other processes wait for the exchange below
        trouble = error
    front = torch.cat([to_device(torch.tensor(header), wire), to_device(stats, wire).view(torch.int64)])
    every = _exchange(front, positions, loss, _ROOM)
    # One read of the device for all decisions.
    heads: list[list[int]] = every[:, :_HEADER].tolist()
    if trouble is not None:
        raise trouble
    _check_heads(heads)
    counts = [head[1] for head in heads]
    if not any(counts):
        raise ValueError("index must have at least one example on some process")
    room = max(_ROOM, *counts)
    if room > _ROOM:
        every = _exchange(front, positions, loss, room)
    rows = list(zip(every[:, _HEADER : _HEADER + room], every[:, _HEADER + room :], counts, strict=True))
    joined = torch.cat([of_rank[:count] for of_rank, _, count in rows])
    losses = torch.cat([of_rank[:count] for _, of_rank, count in rows])
    return to_device(joined, device), to_device(losses.view(ops.LOSS_DTYPE), device)


def _check_heads(heads: list[list[int]]) -> None:
    """Raise ValueError if the arguments of a process were invalid, or differ between processes."""
    for rank, (is_valid, *_) in enumerate(heads):
        if not is_valid:
            raise ValueError(f"the arguments of ascend are invalid on rank {rank}: no weight was changed")
    if all(head[2:] == heads[0][2:] for head in heads):
        return
    check_alike("mode", [_MODES[head[2]] for head in heads])
    check_alike("the state of generator", [f"{head[3]:014x}" for head in heads])
    check_alike("lr", [_number(head[4]) for head in heads])
    check_alike("the sums over the pool's weights", [[_number(bits) for bits in head[5:]] for head in heads])


def _exchange(front: Tensor, index: Tensor, loss: Tensor, room: int) -> Tensor:
    """Return header, indices and losses of every process, int64 `[R, 8 + 2 room]`; losses as their bits."""
    packet = torch.zeros(_HEADER + 2 * room, dtype=torch.int64, device=front.device)
    packet[:_HEADER] = front
    # A longer batch is sent again, once every process knows its length.
    if len(index) <= room:
        packet[_HEADER : _HEADER + len(index)] = index
        packet[_HEADER + room : _HEADER + room + len(loss)] = loss.view(torch.int64)
    size = dist.get_world_size()
    every = packet.new_empty(size * len(packet))
    dist.all_gather_into_tensor(every, packet)
    return every.view(size, -1)


def _device_of_group(device: torch.device) -> torch.device:
    """Return the device on which the default group exchanges tensors: that of the pool, unless NCCL cannot use it."""
    if device.type == "cpu" and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _bits(number: float) -> int:
    """Return the bits of a float64 as an integer."""
    return int.from_bytes(struct.pack("<d", number), "little", signed=True)


def _number(bits: int) -> float:
    """Return the float64 with these bits."""
    (number,) = struct.unpack("<d", bits.to_bytes(8, "little", signed=True))
    return float(number)
