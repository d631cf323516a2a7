"""Parts of the background that an arm trains with; several processes may each have the images of one slice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.division import slice_rows
from fastood.data import DetectionTask

_CHUNK = 1 << 24


@dataclass(frozen=True, kw_only=True, eq=False)
class BackgroundPart:
    """Images of the background that an arm trains with."""

    index: Tensor | range
    """Images of this process's slice, ascending rows of the whole background: int64 `[n]`, or a range."""
    owned: range | None
    """Slice of this process; None if every process has all images."""
    counts: tuple[int, ...]
    """Images of the part in the slice of each process, in the order of the ranks; one number without slices."""

    @property
    def total(self) -> int:
        """Images of the part over all processes."""
        return sum(self.counts)

    @property
    def rank(self) -> int:
        """Rank of this process, 0 without slices."""
        return 0 if self.owned is None else dist.get_rank()


def owned_slice(task: DetectionTask) -> range | None:
    """Return the rows of the background that this process has; None if it has all of them."""
    if task.share is None:
        return None
    return range(task.background_begin, task.background_begin + len(task.background))


def slices_of(task: DetectionTask) -> list[range]:
    """Return the rows of the background of each process, in the order of the ranks; one range without slices."""
    size = task.background_size
    if owned_slice(task) is None:
        return [range(size)]
    processes = dist.get_world_size()
    return [slice_rows(size, rank, processes) for rank in range(processes)]


def full_part(task: DetectionTask) -> BackgroundPart:
    """Return all images of the background, as a range, which takes no memory."""
    slices, owned = slices_of(task), owned_slice(task)
    return BackgroundPart(
        index=slices[0] if owned is None else owned, owned=owned, counts=tuple(len(part) for part in slices)
    )


def random_part(task: DetectionTask, rate: float, *, generator: torch.Generator) -> BackgroundPart:
    """Return each image independently with probability γ; the same images for any number of processes.

    Every process draws a number for every image, in chunks, and keeps the images of its slice.

    Args:
        task: The images.
        rate: Probability γ in (0, 1].
        generator: Source of the draws, on the CPU, in the same state on every process.
    """
    slices, owned = slices_of(task), owned_slice(task)
    edges = torch.tensor([part.stop for part in slices])
    counts = torch.zeros(len(slices), dtype=torch.int64)
    kept = []
    for begin in range(0, task.background_size, _CHUNK):
        length = min(_CHUNK, task.background_size - begin)
        index = (torch.rand(length, generator=generator) < rate).nonzero().flatten() + begin
        counts += torch.bincount(torch.bucketize(index, edges, right=True), minlength=len(slices))
        kept.append(index if owned is None else index[(index >= owned.start) & (index < owned.stop)])
    return BackgroundPart(index=torch.cat(kept), owned=owned, counts=tuple(counts.tolist()))


def selected_part(task: DetectionTask, index: Tensor) -> BackgroundPart:
    """Return the part that consists of the rows that each process has selected; every process must call it.

    Args:
        task: The images.
        index: Selected rows of this process's slice, int64 `[n]`, on the device of its pool.
    """
    owned = owned_slice(task)
    if owned is None:
        return BackgroundPart(index=index.cpu(), owned=None, counts=(len(index),))
    own = torch.tensor([len(index)], device=index.device)
    every = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=index.device)
    dist.all_gather_into_tensor(every, own)
    return BackgroundPart(index=index.cpu(), owned=owned, counts=tuple(every.tolist()))


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """Return a generator of the device with the seed of one on the CPU; on the CPU the generator itself."""
    if device.type == "cpu":
        return generator
    return torch.Generator(device).manual_seed(generator.initial_seed())
