"""Differences between arms and the baseline, as the page prints them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastood.train.report.result_rows import DECIMALS, Metric, ood_names


@dataclass(frozen=True, kw_only=True)
class DifferenceCell:
    """Difference of an arm from the baseline on one OOD set, in percentage points as printed."""

    estimate: str
    interval: str
    p_value: str
    is_certain: bool
    """Whether the interval excludes 0 and the p-value as printed is below 1 minus the level of the interval."""


@dataclass(frozen=True, kw_only=True)
class DifferenceRow:
    """Differences on one OOD set of all arms except the baseline."""

    name: str
    cells: tuple[DifferenceCell, ...]


def compared_arms(metrics: Mapping[str, Any]) -> list[str]:
    """Return the arms that are compared with the baseline, in table order; none without a baseline."""
    baseline = metrics["bootstrap"]["baseline"]
    return [] if baseline is None else [arm for arm in metrics["arms"] if arm != baseline]


def difference_rows(metrics: Mapping[str, Any], metric: Metric) -> list[DifferenceRow]:
    """Return the differences in one metric: a row per OOD set, with cells in the order of `compared_arms`."""
    compared = [metrics["arms"][arm] for arm in compared_arms(metrics)]
    alpha = round(1 - metrics["bootstrap"]["level"], 9)
    return [
        DifferenceRow(
            name=name, cells=tuple(_cell(arm["ood"][name]["difference"][metric.key], alpha) for arm in compared)
        )
        for name in ood_names(metrics)
    ]


def points(fraction: float) -> str:
    """Format a difference of fractions in percentage points, with its sign.

    Example:
        >>> points(0.0123), points(-0.00001)
        ('+1.23', '0.00')
    """
    printed = f"{100 * fraction:+.{DECIMALS}f}"
    return printed if float(printed) else printed[1:]


def _cell(difference: Mapping[str, float], alpha: float) -> DifferenceCell:
    low, high = difference["low"], difference["high"]
    p_value = difference["p_value"]
    printed = f"{p_value:.2f}" if p_value >= 0.1 else f"{p_value:.3f}"
    return DifferenceCell(
        estimate=points(difference["estimate"]),
        interval=f"{points(low)} … {points(high)}",
        p_value=printed,
        is_certain=(low > 0 or high < 0) and float(printed) < alpha,
    )
