"""Scores of any dtype as floats that compare and tie exactly as the scores do."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastood.metrics.inputs import Values
from fastood.metrics.validation import checked_pair

__all__ = ["RankedPair", "ranked", "ranked_pair"]

_EXACT_IN_FLOAT32 = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16, torch.float32)
_EXACT_IN_FLOAT64 = (torch.int32, torch.uint16, torch.uint32, torch.float64)


class RankedPair(NamedTuple):
    """Two sets of scores as floats of one dtype with the order and the ties of the scores."""

    id_scores: Tensor
    """[..., N] float32 or float64."""
    ood_scores: Tensor
    """[..., M], the same dtype."""
    table: Tensor | None
    """Distinct scores, ascending, if the floats are ranks of 64-bit integers; else None."""

    def thresholds(self, values: Tensor) -> Tensor:
        """Return the scores, float64, of the floats `values`."""
        return values.double() if self.table is None else self.table[values.long()].double()


def ranked_pair(id_scores: Values, ood_scores: Values, *, batched: bool = False) -> RankedPair:
    """Check two sets of scores and convert them to floats without changing order or ties.

    Args:
        id_scores: `[N]` scores, higher = more OOD, N ≥ 1; bool, integer or floating point, no NaN.
        ood_scores: `[M]` scores, same dtype and device.
        batched: Whether both may have leading dimensions.

    Raises:
        TypeError: If scores are not numeric, are complex or differ in dtype.
        ValueError: If scores are empty, of a wrong shape, hold NaN or are on different devices.
    """
    return ranked(*checked_pair(id_scores, ood_scores, batched=batched))


def ranked(id_scores: Tensor, ood_scores: Tensor) -> RankedPair:
    """Convert two checked sets of scores to floats without changing order or ties."""
    if id_scores.dtype in _EXACT_IN_FLOAT32:
        return RankedPair(id_scores.float(), ood_scores.float(), None)
    if id_scores.dtype in _EXACT_IN_FLOAT64:
        return RankedPair(id_scores.double(), ood_scores.double(), None)
    # Distinct 64-bit integers beyond 2⁵³ may be equal as float64; their ranks are not.
    both = torch.cat((id_scores.reshape(-1), ood_scores.reshape(-1)))
    table, ranks = torch.unique(both, return_inverse=True)
    ranks = ranks.double()
    id_ranks, ood_ranks = ranks[: id_scores.numel()], ranks[id_scores.numel() :]
    return RankedPair(id_ranks.view(id_scores.shape), ood_ranks.view(ood_scores.shape), table)
