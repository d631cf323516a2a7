"""Consistency of the scores that several processes hold before they are exchanged."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastood.common.distributed import check_alike

__all__ = ["ShardSummary", "check_shards"]


class ShardSummary(NamedTuple):
    """Properties of the scores of one process, which must agree between processes."""

    dtype: torch.dtype | None
    """Dtype of the scores; None for a process without a batch, which agrees with any other."""
    has_predictions: bool
    mode: str
    names: tuple[str, ...] = ()
    """Names of the metrics of each image; empty for a process without images, which agrees with any other."""


def check_shards(shards: Sequence[ShardSummary]) -> ShardSummary:
    """Check that the shards of all processes, in the order of their ranks, can be merged, and return their summary.

    Raises:
        TypeError: If the scores of two processes differ in dtype.
        ValueError: If the modes or the names of the metrics of images differ, or only some processes have predictions.
    """
    check_alike("mode", [shard.mode for shard in shards])
    ranks = [rank for rank, shard in enumerate(shards) if shard.dtype is not None]
    for rank in ranks:
        shard, first = shards[rank], shards[ranks[0]]
        if shard.dtype != first.dtype:
            raise TypeError(
                f"scores must have one dtype on all processes, got {first.dtype} on rank {ranks[0]} and {shard.dtype} "
                f"on rank {rank}"
            )
        if shard.has_predictions != first.has_predictions:
            with_predictions, without = (rank, ranks[0]) if shard.has_predictions else (ranks[0], rank)
            raise ValueError(
                "predictions must be given on all processes or on none, got them on rank "
                f"{with_predictions} and not on rank {without}"
            )
        if shard.names != first.names:
            raise ValueError(
                f"images must have the same metrics on all processes, got {', '.join(first.names)} on rank {ranks[0]} "
                f"and {', '.join(shard.names)} on rank {rank}: tpr must be the same"
            )
    return shards[ranks[0]] if ranks else shards[0]
