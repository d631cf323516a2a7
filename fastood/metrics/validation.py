"""Checks of scores and settings of metrics."""

from collections.abc import Iterable, Mapping
from math import isfinite, isnan
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
"""Positive class: OOD in most papers, ID in some (energy, ODIN, Mahalanobis)."""


def checked_pair(
    id_scores: Values,
    ood_scores: Values,
    *,
    names: tuple[str, str] = ("id_scores", "ood_scores"),
    batched: bool = False,
) -> tuple[Tensor, Tensor]:
    """Check two sets of scores and return them as tensors that can be ranked together.

    Args:
        id_scores: In-distribution scores; a list takes the dtype of the other set.
        ood_scores: OOD scores; a list takes the dtype of the other set.
        names: Names of the two arguments for error messages.
        batched: Whether leading dimensions are allowed.

    Raises:
        TypeError: If scores are not numeric, are complex or differ in dtype: a number rounded to two precisions would
            no longer tie with itself.
        ValueError: If scores are empty, of a wrong shape, hold NaN or are on different devices.
    """
    one, other = (
        checked_scores(name, values, batched=batched, nan_allowed=True)
        for name, values in zip(names, (id_scores, ood_scores), strict=True)
    )
    check_no_nan(dict(zip(names, (one, other), strict=True)))
    if one.dtype != other.dtype:
        # Two lists differ in dtype only if one holds integers that float64 does not represent: both become int64.
        lists = not (has_dtype(id_scores) or has_dtype(ood_scores))
        if not has_dtype(ood_scores):
            other = in_dtype(names[1], other, torch.int64 if lists else one.dtype)
        if not has_dtype(id_scores):
            one = in_dtype(names[0], one, torch.int64 if lists else other.dtype)
    check_comparable(names[0], one, names[1], other)
    return one, other


def check_comparable(name: str, scores: Tensor, other_name: str, other: Tensor) -> None:
    """Check that two sets of scores share dtype, without which ties are not exact, and device.

    Raises:
        TypeError: If the dtypes differ: a number rounded to two precisions would no longer tie with itself.
        ValueError: If the devices differ.
    """
    if scores.dtype != other.dtype:
        raise TypeError(
            f"{name} and {other_name} must share one dtype, got {scores.dtype} and {other.dtype}: a number rounded to "
            "two precisions does not tie"
        )
    if scores.device != other.device:
        raise ValueError(f"{name} and {other_name} must share one device, got {scores.device} and {other.device}")


def checked_scores(name: str, values: Values, *, batched: bool = False, nan_allowed: bool = False) -> Tensor:
    """Check scores and return them as a tensor that can be ranked.

    Args:
        name: Name of the argument for error messages.
        values: `[N]` bool, integer or floating-point scores, N ≥ 1, no NaN.
        batched: Whether leading dimensions are allowed.
        nan_allowed: Whether the caller checks for NaN.

    Raises:
        TypeError: If scores are not numeric, or complex.
        ValueError: If scores are empty, of a wrong shape, or hold NaN.
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
    if not nan_allowed:
        check_no_nan({name: scores})
    return scores


def check_one_dtype(name: str, sets: Iterable[Tensor]) -> None:
    """Raise TypeError unless all sets of scores share one dtype; a list of ID scores could match each set alone."""
    dtypes = list(dict.fromkeys(scores.dtype for scores in sets))
    if len(dtypes) > 1:
        raise TypeError(f"{name} must be sets of one dtype, got {' and '.join(map(str, dtypes))}")


def check_no_nan(sets: Mapping[str, Tensor]) -> None:
    """Raise ValueError for scores that hold NaN; waits for a device once for all sets on it.

    Args:
        sets: Scores by the name of their argument.
    """
    checked = {name: scores for name, scores in sets.items() if scores.numel() and scores.is_floating_point()}
    # amax propagates NaN, and needs no bool tensor of all scores.
    largest = [scores.amax().double() for scores in checked.values()]
    together = len({extreme.device for extreme in largest}) == 1
    numbers = torch.stack(largest).tolist() if together else [float(extreme) for extreme in largest]
    for (name, scores), number in zip(checked.items(), numbers, strict=True):
        if isnan(number):
            nan_count = int(scores.isnan().sum())
            raise ValueError(f"{name} holds {nan_count} NaN among its {scores.numel()} scores; NaN has no rank")


def checked_correct(correct: Values, id_scores: Tensor) -> Tensor:
    """Check and return the bools that mark correctly classified ID images, on the device of the scores.

    Raises:
        TypeError: If `correct` is not bool.
        ValueError: If the shape differs from that of the scores.
    """
    flags = as_flags("correct", correct)
    if flags.shape != id_scores.shape:
        raise ValueError(f"correct must have shape {tuple(id_scores.shape)} as id_scores, got {tuple(flags.shape)}")
    return flags.to(id_scores.device)


def check_choice(name: str, value: object, choices: object) -> None:
    """Raise ValueError unless the value is one of those of a `Literal`."""
    allowed = get_args(choices)
    if not isinstance(value, str) or value not in allowed:
        words = [f'"{choice}"' for choice in allowed]
        raise ValueError(f"{name} must be {', '.join(words[:-1])} or {words[-1]}, got {shown(value)}")


def checked_tpr(tpr: float) -> float:
    """Check a true-positive rate and return it as a float.

    Raises:
        TypeError: If `tpr` is not a number.
        ValueError: If `tpr` is outside (0, 1].
    """
    return checked_between("tpr", tpr, high_allowed=True)


def checked_between(name: str, value: object, *, high_allowed: bool = False) -> float:
    """Return a fraction as a float; raise TypeError unless it is a number, ValueError unless in (0, 1), or (0, 1]."""
    interval = "(0, 1]" if high_allowed else "(0, 1)"
    number = as_real(name, value, wanted=f"a number in {interval}")
    if not (0 < number < 1 or (high_allowed and number == 1)):
        raise ValueError(f"{name} must lie in {interval}, got {shown(value)}")
    return number


def checked_positive(name: str, value: object, *, otherwise: str = "") -> float:
    """Return a number as a float; raise TypeError unless it is a number, ValueError unless finite and above 0."""
    number = as_real(name, value, wanted=f"a finite number above 0{otherwise}")
    if not (isfinite(number) and number > 0):
        raise ValueError(f"{name} must be a finite number above 0{otherwise}, got {shown(value)}")
    return number
