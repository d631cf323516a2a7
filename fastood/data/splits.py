"""Splitting of a test set from a data set without one."""

import torch
from torch import Tensor


def stratified_split(labels: Tensor, fraction: float, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split off the same fraction of every class, at least one image of each.

    Args:
        labels: int64 `[N]`, 0 or larger.
        fraction: Fraction of the held-out images, in (0, 1).
        generator: RNG of the split.

    Returns:
        int64 indices of the remaining and of the held-out images, each in ascending order.

    Raises:
        ValueError: If `fraction` is out of range, or a class has only one image.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1])
        >>> train, test = stratified_split(labels, 1 / 3, generator=torch.Generator().manual_seed(0))
        >>> labels[train].tolist(), labels[test].tolist()
        ([0, 0, 1, 1], [0, 1])
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be in (0, 1), got {fraction}")
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = torch.nonzero(labels == label)[:, 0]
        if len(members) < 2:
            raise ValueError(f"labels: class {int(label)} has one image, at least 2 are needed to hold one out")
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return torch.nonzero(~held_out)[:, 0], torch.nonzero(held_out)[:, 0]
