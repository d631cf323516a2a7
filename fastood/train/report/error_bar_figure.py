"""Figure of the error bars: metrics of each arm on each OOD set, with bootstrap intervals."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from fastood.train.report.result_rows import ood_names, reported_metrics
from fastood.train.report.style import INK, arm_styles, in_two_lines, legend_above, literal, new_figure

SPREAD = 0.62
"""Part of the height of a row that its arms take."""
AREA_END = 1e-5
"""Ends of the axis of an area: AUROC and AUPR within this distance of 0 or 1 are drawn there."""
TICKS = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


def error_bars(metrics: Mapping[str, Any]) -> Figure:
    """Draw estimates and intervals in per cent: one panel per metric, one row per OOD set, arms below one another.

    Axes are logit, because good detectors differ near 0 and 100 %. The ends of an FPR axis represent 0 and 100, those
    of an AUROC or AUPR axis for everything within 0.001 per cent of them.

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
        # Half the fraction of one image: only a rate of 0 is lower.
        end = 0.5 / metrics["in_distribution"]["test"] if metric.key == "fpr95" else AREA_END
        for position, arm in enumerate(arms):
            intervals = [arms[arm]["ood"][name]["interval"][metric.key] for name in names]
            rows = [row - SPREAD / 2 + (position + 0.5) * step for row in range(len(names))]
            at = {
                key: [min(max(interval[key], end), 1 - end) for interval in intervals]
                for key in ("estimate", "low", "high")
            }
            ax.plot(at["estimate"], rows, "o", color=styles[arm][0], markersize=4.5, clip_on=False)
            ax.hlines(rows, at["low"], at["high"], color=styles[arm][0], linewidth=1.6, clip_on=False)
        for row in range(1, len(names)):
            ax.axhline(row - 0.5, color="#e6e6e6", linewidth=0.8, zorder=0)
        set_logit_axis(ax, end)
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


def set_logit_axis(ax: Axes, end: float) -> None:
    """Set a logit x-axis from below the lowest drawn value to above the highest, with ticks where there is room."""
    low, high = ax.dataLim.intervalx
    ax.set_xscale("logit")
    ax.set_xlim(max(low - 0.3 * low, end), min(high + 0.3 * (1 - high), 1 - end))
    bounds = {end: "0", 1 - end: "100"} if end != AREA_END else {end: "≤ 0.001", 1 - end: "≥ 99.999"}
    labels = {**bounds, **{tick: f"{100 * tick:g}" for tick in TICKS if 2 * end < tick < 1 - 2 * end}}
    ticks = [tick for tick in labels if ax.get_xlim()[0] <= tick <= ax.get_xlim()[1]]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.set_xticks(ticks, [labels[tick] for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
