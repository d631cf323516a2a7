"""Mean and spread over training seeds, as every table of results gives them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def mean_and_std(values: Sequence[float]) -> dict[str, float]:
    """Return the mean and the sample standard deviation (divided by n - 1) of at least two values.

    Example:
        >>> mean_and_std([1.0, 3.0])
        {'mean': 2.0, 'std': 1.4142135623730951}
    """
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values)}


def per_cent(spread: dict[str, float]) -> str:
    """Return "mean ± std" in per cent, with two decimals."""
    return f"{100 * spread['mean']:.2f} ± {100 * spread['std']:.2f}"
