"""Figure of the error bars: every arm's metrics on every OOD set, with their bootstrap intervals."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from fastood.report.results import ood_names, reported_metrics
from fastood.report.style import INK, arm_styles, in_two_lines, legend_above, literal, new_figure

SPREAD = 0.62
"""Part of a row's height that its arms share."""


def error_bars(metrics: Mapping[str, Any]) -> Figure:
    """Estimates and intervals in per cent: one panel per metric, one row per OOD set, arms below one another in it.

    Args:
        metrics: Contents of a run's metrics.json.

    Returns:
        The figure.
    """
    arms = metrics["arms"]
    names = ood_names(metrics)
    styles = arm_styles(arms)
    reported = reported_metrics(metrics)
    height = 1.0 + len(names) * (0.3 + 0.17 * len(arms))
    figure, axes = new_figure(1, len(reported), size=(3.4 * len(reported), height))
    step = SPREAD / len(arms)
    for ax, metric in zip(axes[0], reported, strict=True):
        for position, arm in enumerate(arms):
            intervals = [arms[arm]["ood"][name]["interval"][metric.key] for name in names]
            rows = [row - SPREAD / 2 + (position + 0.5) * step for row in range(len(names))]
            ends = {end: [100 * interval[end] for interval in intervals] for end in ("estimate", "low", "high")}
            ax.plot(ends["estimate"], rows, "o", color=styles[arm][0], markersize=4.5, clip_on=False)
            ax.hlines(rows, ends["low"], ends["high"], color=styles[arm][0], linewidth=1.6, clip_on=False)
        for row in range(1, len(names)):
            ax.axhline(row - 0.5, color="#e6e6e6", linewidth=0.8, zorder=0)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_yticks(range(len(names)), [in_two_lines(name, 24) for name in names] if ax is axes[0][0] else [])
        ax.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_title(f"{metric.heading}, per cent", fontsize=10, color=INK)
    legend_above(
        figure,
        [
            (Line2D([], [], color=styles[arm][0], marker="o", markersize=4.5, linewidth=1.6), literal(result["label"]))
            for arm, result in arms.items()
        ],
    )
    return figure
