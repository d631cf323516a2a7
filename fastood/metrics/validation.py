"""What can be ranked, and how every dtype becomes floats without a tie made or lost."""

from fractions import Fraction
from math import isfinite
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Positive = Literal["ood", "id"]
"""The class whose detection is measured: most papers take OOD, some (energy, ODIN, Mahalanobis) take ID."""

_EXACT_IN_FLOAT32 = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16, torch.float32)
_EXACT_IN_FLOAT64 = (torch.int32, torch.uint16, torch.uint32, torch.float64)


class RankedPair(NamedTuple):
    """Two sets of scores as floats of one dtype that compare as the scores do."""

    id_scores: Tensor
    """[..., N] float32 or float64."""
    ood_scores: Tensor
    """[..., M], the same dtype."""
    table: Tensor | None
    """Where the floats are ranks of 64-bit integers: the integers, ascending; else None."""

    def thresholds(self, values: Tensor) -> Tensor:
        """The scores, as float64, that such floats stand for."""
        return values.double() if self.table is None else self.table[values.long()].double()


def ranked_pair(id_scores: Tensor, ood_scores: Tensor, *, batched: bool = False) -> RankedPair:
    """Checks two sets of scores and converts them to floats, exactly.

    Args:
        id_scores: [N] scores, higher = more OOD, N ≥ 1; bool, integer or floating point, no NaN.
        ood_scores: [M] scores, same dtype and device.
        batched: Whether both may have leading dimensions.

    Raises:
        TypeError: Scores that are no tensors, are complex, or differ in dtype.
        ValueError: Scores that are empty, of a wrong shape, hold NaN or lie on different devices.
    """
    check_scores("id_scores", id_scores, batched=batched)
    check_scores("ood_scores", ood_scores, batched=batched)
    check_comparable("id_scores", id_scores, "ood_scores", ood_scores)
    id_scores, ood_scores = id_scores.detach(), ood_scores.detach()
    if id_scores.dtype in _EXACT_IN_FLOAT32:
        return RankedPair(id_scores.float(), ood_scores.float(), None)
    if id_scores.dtype in _EXACT_IN_FLOAT64:
        return RankedPair(id_scores.double(), ood_scores.double(), None)
    # 64-bit integers beyond 2⁵³ would tie as floats, their ranks do not.
    both = torch.cat((id_scores.reshape(-1), ood_scores.reshape(-1)))
    table, ranks = torch.unique(both, return_inverse=True)
    ranks = ranks.double()
    id_ranks, ood_ranks = ranks[: id_scores.numel()], ranks[id_scores.numel() :]
    return RankedPair(id_ranks.view(id_scores.shape), ood_ranks.view(ood_scores.shape), table)


def check_scores(name: str, scores: Tensor, *, batched: bool = False) -> None:
    """Refuses what cannot be ranked.

    Args:
        name: The argument's name, for the error message.
        scores: [N] bool, integer or floating-point scores, N ≥ 1, no NaN.
        batched: Whether leading dimensions are allowed.

    Raises:
        TypeError: Not a tensor, or complex.
        ValueError: Empty, of a wrong shape, or holding NaN.
    """
    if not isinstance(scores, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(scores).__name__}")
    if scores.is_complex():
        raise TypeError(f"{name} must be real, got {scores.dtype}")
    if batched and scores.ndim == 0:
        raise ValueError(f"{name} must have shape [..., N], got shape ()")
    if not batched and scores.ndim != 1:
        raise ValueError(f"{name} must be 1-D [N], got shape {tuple(scores.shape)}")
    if not scores.shape[-1]:
        raise ValueError(f"{name} is empty; a metric needs at least one score of each class")
    if not scores.numel():
        raise ValueError(f"{name} must hold at least one set of scores, got shape {tuple(scores.shape)}")
    if scores.is_floating_point() and scores.amax().isnan():  # NaN is the maximum wherever there is one
        nan_count = int(scores.isnan().sum())
        raise ValueError(f"{name} holds {nan_count} NaN among its {scores.numel()} scores; NaN has no rank")


def check_comparable(name: str, scores: Tensor, other_name: str, other: Tensor) -> None:
    """Refuses two sets of scores between which ties are not exact, or which lie on different devices.

    Raises:
        TypeError: Different dtypes; one number rounded to two precisions would no longer tie.
        ValueError: Different devices.
    """
    if scores.dtype != other.dtype:
        raise TypeError(f"{name} and {other_name} must share one dtype, got {scores.dtype} and {other.dtype}")
    if scores.device != other.device:
        raise ValueError(f"{name} and {other_name} must share one device, got {scores.device} and {other.device}")


def check_correct(correct: Tensor, id_scores: Tensor) -> None:
    """Refuses what does not say of each ID image whether it was classified correctly.

    Raises:
        TypeError: Not bool.
        ValueError: Another shape than the scores.
    """
    if correct.dtype != torch.bool:
        raise TypeError(f"correct must be bool, got {correct.dtype}")
    if correct.shape != id_scores.shape:
        raise ValueError(f"correct must have shape {tuple(id_scores.shape)} as id_scores, got {tuple(correct.shape)}")


def check_choice(name: str, value: object, choices: object) -> None:
    """Refuses a value that is none of a `Literal`'s.

    Raises:
        ValueError: An unknown value.
    """
    known = get_args(choices)
    if value not in known:
        words = [f'"{choice}"' for choice in known]
        raise ValueError(f"{name} must be {', '.join(words[:-1])} or {words[-1]}, got {value!r}")


def check_tpr(tpr: float) -> None:
    """Refuses what is no true-positive rate.

    Raises:
        ValueError: `tpr` outside (0, 1].
    """
    if not (isfinite(tpr) and 0 < tpr <= 1):
        raise ValueError(f"tpr must lie in (0, 1], got {tpr}")


def decimal_fraction(value: float) -> Fraction:
    """The number that was typed: 0.1 becomes 1/10, not its binary neighbour, so that 0.1 · 100 is 10.

    Example:
        >>> decimal_fraction(0.95)
        Fraction(19, 20)
    """
    return Fraction(repr(float(value)))
