"""Figure of detectors: metrics of each detector on the network of each arm, over the OOD sets."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from fastood.train.report.error_bar_figure import AREA_END, SPREAD, set_logit_axis
from fastood.train.report.result_rows import Metric, reported_metrics
from fastood.train.report.style import INK, arm_styles, legend_above, literal, new_figure


def detectors_figure(document: Mapping[str, Any]) -> Figure:
    """Draw means over the OOD sets in per cent, each with a line from the lowest set to the highest.

    One panel per metric and one row per detector, with the arms below one another in a row. Axes are logit, because
    good detectors differ near 0 and 100 %.

    Args:
        document: Contents of detectors.json, with at least one detector.

    Returns:
        The figure.
    """
    arms = {name: arm for name, arm in document["arms"].items() if arm["detectors"]}
    detectors = list(dict.fromkeys(name for arm in arms.values() for name in arm["detectors"]))
    styles = arm_styles(arms)
    reported = reported_metrics(document)
    height = 1.0 + len(detectors) * (0.16 + 0.13 * len(arms))
    figure, axes = new_figure(1, len(reported), size=(3.4 * len(reported), height))
    step = SPREAD / len(arms)
    for ax, metric in zip(axes[0], reported, strict=True):
        end = _half_an_image(arms) if metric.key == "fpr95" else AREA_END
        for position, (arm, result) in enumerate(arms.items()):
            rows = [detectors.index(name) - SPREAD / 2 + (position + 0.5) * step for name in result["detectors"]]
            spreads = [_spread(of_detector, metric, end) for of_detector in result["detectors"].values()]
            means, low, high = zip(*spreads, strict=True)
            ax.plot(means, rows, "o", color=styles[arm][0], markersize=4, clip_on=False)
            ax.hlines(rows, low, high, color=styles[arm][0], linewidth=1.4, alpha=0.55, clip_on=False)
        for row in range(1, len(detectors)):
            ax.axhline(row - 0.5, color="#e6e6e6", linewidth=0.8, zorder=0)
        set_logit_axis(ax, end)
        ax.set_ylim(len(detectors) - 0.5, -0.5)
        ax.set_yticks(range(len(detectors)), detectors if ax is axes[0][0] else [])
        ax.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_title(f"{metric.heading}, per cent", fontsize=10, color=INK)
    legend_above(
        figure,
        [
            (Line2D([], [], color=styles[arm][0], marker="o", markersize=4, linewidth=1.4), literal(result["label"]))
            for arm, result in arms.items()
        ],
    )
    return figure


def _spread(of_detector: Mapping[str, Any], metric: Metric, end: float) -> tuple[float, float, float]:
    """Return mean, least and largest value over the OOD sets, clipped to the ends of the axis."""
    of_sets = [result[metric.key]["mean"] for result in of_detector["ood"].values()]
    mean, low, high = (min(max(x, end), 1 - end) for x in (of_detector["mean"][metric.key], min(of_sets), max(of_sets)))
    return mean, low, high


def _half_an_image(arms: Mapping[str, Any]) -> float:
    """Return half the fraction of one image in a rate: only a rate of 0 is lower."""
    first = next(iter(next(iter(arms.values()))["detectors"].values()))
    of_set = next(iter(first["ood"].values()))
    return 0.5 / float(max(of_set["id_count"], of_set["ood_count"]))
