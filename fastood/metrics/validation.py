"""What can be ranked, and how every dtype becomes floats without a tie made or lost."""

from collections.abc import Iterable
from math import isfinite
from typing import Literal, get_args

import torch
from torch import Tensor

from fastood.metrics.inputs import Values, as_flags, as_scores, has_dtype, in_dtype
from fastood.ops._arguments import as_real, shown

__all__ = [
    "Positive",
    "check_choice",
    "check_comparable",
    "check_no_nan",
    "check_one_dtype",
    "checked_between",
    "checked_correct",
    "checked_pair",
    "checked_positive",
    "checked_scores",
    "checked_tpr",
]

Positive = Literal["ood", "id"]
"""The class whose detection is measured: most papers take OOD, some (energy, ODIN, Mahalanobis) take ID."""


def checked_pair(
    id_scores: Values,
    ood_scores: Values,
    *,
    names: tuple[str, str] = ("id_scores", "ood_scores"),
    batched: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return both sets as tensors that can be ranked together.

    Args:
        id_scores: In-distribution scores; a list takes the dtype of the other set.
        ood_scores: OOD scores, in the same forms.
        names: Of the arguments, for the error.
        batched: Whether leading dimensions are allowed.

    Raises:
        TypeError: No numbers, complex, or another dtype; one number rounded to two precisions would no longer tie.
        ValueError: Empty, of a wrong shape, holding NaN, or on another device.
    """
    one, other = (
        checked_scores(name, values, batched=batched)
        for name, values in zip(names, (id_scores, ood_scores), strict=True)
    )
    if one.dtype != other.dtype:
        # Of two lists the one of integers that float64 does not hold decides: int64.
        lists = not (has_dtype(id_scores) or has_dtype(ood_scores))
        if not has_dtype(ood_scores):
            other = in_dtype(names[1], other, torch.int64 if lists else one.dtype)
        if not has_dtype(id_scores):
            one = in_dtype(names[0], one, torch.int64 if lists else other.dtype)
    check_comparable(names[0], one, names[1], other)
    return one, other


def check_comparable(name: str, scores: Tensor, other_name: str, other: Tensor) -> None:
    """Raise for two sets of scores between which ties are not exact, or which lie on different devices.

    Raises:
        TypeError: Different dtypes; one number rounded to two precisions would no longer tie.
        ValueError: Different devices.
    """
    if scores.dtype != other.dtype:
        raise TypeError(
            f"{name} and {other_name} must share one dtype, got {scores.dtype} and {other.dtype}: a number rounded to "
            "two precisions does not tie"
        )
    if scores.device != other.device:
        raise ValueError(f"{name} and {other_name} must share one device, got {scores.device} and {other.device}")


def checked_scores(name: str, values: Values, *, batched: bool = False) -> Tensor:
    """Return scores as a tensor that can be ranked.

    Args:
        name: The argument's name, for the error message.
        values: [N] bool, integer or floating-point scores, N ≥ 1, no NaN.
        batched: Whether leading dimensions are allowed.

    Raises:
        TypeError: No numbers, or complex.
        ValueError: Empty, of a wrong shape, or holding NaN.
    """
    scores = as_scores(name, values)
    if batched and scores.ndim == 0:
        raise ValueError(f"{name} must have shape [..., N], got shape ()")
    if not batched and scores.ndim != 1:
        raise ValueError(f"{name} must be 1-D [N], got shape {tuple(scores.shape)}")
    if not scores.shape[-1]:
        raise ValueError(f"{name} is empty; a metric needs at least one score of each class")
    if not scores.numel():
        raise ValueError(f"{name} must hold at least one set of scores, got shape {tuple(scores.shape)}")
    check_no_nan(name, scores)
    return scores


def check_one_dtype(name: str, sets: Iterable[Tensor]) -> None:
    """Raise TypeError for sets of scores that differ in dtype, each of which a list of ID scores could stand beside."""
    dtypes = list(dict.fromkeys(scores.dtype for scores in sets))
    if len(dtypes) > 1:
        raise TypeError(f"{name} must be sets of one dtype, got {' and '.join(map(str, dtypes))}")


def check_no_nan(name: str, scores: Tensor) -> None:
    """Raise ValueError for scores that hold NaN."""
    # NaN is the maximum wherever there is one.
    if scores.numel() and scores.is_floating_point() and scores.amax().isnan():
        nan_count = int(scores.isnan().sum())
        raise ValueError(f"{name} holds {nan_count} NaN among its {scores.numel()} scores; NaN has no rank")


def checked_correct(correct: Values, id_scores: Tensor) -> Tensor:
    """Return what says of each ID image whether it was classified correctly.

    Raises:
        TypeError: Not bool.
        ValueError: Another shape than the scores.
    """
    flags = as_flags("correct", correct)
    if flags.shape != id_scores.shape:
        raise ValueError(f"correct must have shape {tuple(id_scores.shape)} as id_scores, got {tuple(flags.shape)}")
    return flags.to(id_scores.device)


def check_choice(name: str, value: object, choices: object) -> None:
    """Raise ValueError for a value that is none of a `Literal`'s."""
    known = get_args(choices)
    if not isinstance(value, str) or value not in known:
        words = [f'"{choice}"' for choice in known]
        raise ValueError(f"{name} must be {', '.join(words[:-1])} or {words[-1]}, got {shown(value)}")


def checked_tpr(tpr: float) -> float:
    """Return a true-positive rate as a float.

    Raises:
        TypeError: `tpr` is no number.
        ValueError: `tpr` outside (0, 1].
    """
    return checked_between("tpr", tpr, high_allowed=True)


def checked_between(name: str, value: object, *, high_allowed: bool = False) -> float:
    """Return a share as a float; raise TypeError for no number, ValueError outside (0, 1), or (0, 1] if allowed."""
    interval = "(0, 1]" if high_allowed else "(0, 1)"
    number = as_real(name, value, wanted=f"a number in {interval}")
    if not (0 < number < 1 or (high_allowed and number == 1)):
        raise ValueError(f"{name} must lie in {interval}, got {shown(value)}")
    return number


def checked_positive(name: str, value: object, *, otherwise: str = "") -> float:
    """Return a finite number above 0 as a float; raise TypeError for no number, ValueError for another."""
    number = as_real(name, value, wanted=f"a finite number above 0{otherwise}")
    if not (isfinite(number) and number > 0):
        raise ValueError(f"{name} must be a finite number above 0{otherwise}, got {shown(value)}")
    return number
