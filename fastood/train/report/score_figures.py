"""Figures of the scores: histograms, ROC curves and precision–recall curves of all arms."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray
from torch import Tensor

from fastood.metrics import Positive, pr_curve, roc_curve
from fastood.train.report.style import ID_COLOUR, INK, arm_styles, in_two_lines, legend_above, literal, new_figure
from fastood.train.results.scoring import ArmScores

Floats = NDArray[np.float64]

BINS = 48
OWN_AXIS_BELOW = 0.3
"""Arms have separate axes if the scores of one would take less than this part of a common axis."""
LOG_DECADES = 3
"""Non-negative scores that span more decades than this are drawn on a logarithmic axis."""
PER_CENT = PercentFormatter(1, symbol=" %")


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """Point at which detection is evaluated: positive class, true-positive rate, and ratio of OOD to ID images."""

    positive: Positive
    """Class to detect."""
    tpr: float
    """True-positive rate at which FPR is read, in (0, 1]."""
    ood_per_id: float | None
    """OOD images per ID image, on which precision depends; None for the ratio of the test sets."""

    @property
    def name(self) -> str:
        """Name of the false-positive rate at this point, e.g. "FPR95"."""
        return f"FPR{100 * self.tpr:g}"


def score_histograms(arms: Mapping[str, ArmScores], point: OperatingPoint) -> Figure:
    """Draw histograms of ID and OOD scores: one row per arm, one column per OOD set.

    All arms share one score axis, unless the scores of an arm would vanish on it. Each histogram is scaled to its peak:
    a detector that puts most OOD images in one bin would otherwise flatten the in-distribution images out of sight. A
    dashed line marks the threshold at which `point.tpr` of the positives are detected; its FPR is written next to it.

    Args:
        arms: Scores of each arm by its name; all arms have the same OOD sets.
        point: The operating point to mark.

    Returns:
        The figure.
    """
    styles = arm_styles(arms)
    names = _set_names(arms)
    axis_of = _score_axes(arms)
    has_own_axes = len({is_log for _, is_log in axis_of.values()}) > 1 or any(
        not np.array_equal(edges, next(iter(axis_of.values()))[0]) for edges, _ in axis_of.values()
    )
    size = (max(5.4, 1.2 + 1.8 * len(names)), 1.0 + 1.15 * len(arms))
    figure, axes = new_figure(len(arms), len(names), size=size)
    for row, (arm, scores) in zip(axes, arms.items(), strict=True):
        edges, is_log = axis_of[arm]
        id_heights = _relative_heights(scores.id_scores, edges)
        for ax, name in zip(row, names, strict=True):
            colour = styles[arm][0]
            ood_heights = _relative_heights(scores.ood_scores[name], edges)
            ax.stairs(id_heights, edges, fill=True, color=ID_COLOUR, alpha=0.7)
            ax.stairs(ood_heights, edges, fill=True, color=colour, alpha=0.35)
            ax.stairs(ood_heights, edges, color=colour, linewidth=1.2)
            if is_log:
                ax.set_xscale("log")
                ax.xaxis.set_major_locator(LogLocator(numticks=5))
            ax.set_xlim(edges[0], edges[-1])
            # Leave room above the bars for the FPR.
            ax.set_ylim(0, 1.35)
            ax.yaxis.set_major_locator(NullLocator())
            ax.xaxis.set_minor_locator(NullLocator())
            ax.tick_params(labelbottom=has_own_axes or row is axes[-1])
            _mark_threshold(ax, scores.id_scores, scores.ood_scores[name], point)
        label = literal(scores.label.replace(", ", ",\n"))
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9.5, color=INK)
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(in_two_lines(name, 22), fontsize=10, color=INK)
    logarithmic = ", logarithmic" if any(is_log for _, is_log in axis_of.values()) else ""
    own = ", each arm's own" if has_own_axes else ""
    figure.supxlabel(f"score (higher = more OOD){own}{logarithmic}", fontsize=9.5, color=INK)
    legend_above(
        figure,
        [
            (Patch(color=ID_COLOUR, alpha=0.7, linewidth=0), "in-distribution test images"),
            (tuple(Patch(color=styles[arm][0], alpha=0.5, linewidth=0) for arm in arms), "OOD images"),
            (Line2D([], [], color=INK, linewidth=1, linestyle="--"), _threshold_label(point)),
        ],
    )
    return figure


def roc_curves(arms: Mapping[str, ArmScores], point: OperatingPoint) -> Figure:
    """Draw ROC curves of all arms, one panel per OOD set, with a dot at the operating point.

    The FPR axis is logarithmic, because good detectors differ at small rates; its left end represents an FPR of 0.

    Args:
        arms: Scores of each arm by its name; all arms have the same OOD sets.
        point: The operating point to mark.

    Returns:
        The figure.
    """
    figure, panels = _curve_panels(arms)
    for name, ax in panels.items():
        any_arm = next(iter(arms.values()))
        negatives = len(any_arm.id_scores if point.positive == "ood" else any_arm.ood_scores[name])
        floor = 0.5 / negatives
        for position, (arm, (colour, style)) in enumerate(arm_styles(arms).items()):
            curve = roc_curve(arms[arm].id_scores, arms[arm].ood_scores[name], positive=point.positive)
            fpr, tpr = _with_points_between(curve.fpr.clamp(min=floor).numpy(), curve.tpr.numpy())
            ax.plot(fpr, tpr, color=colour, linestyle=style, linewidth=1.7, clip_on=False)
            at = _operating_index(curve.tpr, point)
            # Dots shrink from arm to arm, so that coinciding dots show as rings.
            diameter = max(9.0 - 1.7 * position, 3.0)
            read_at = max(float(curve.fpr[at]), floor), float(curve.tpr[at])
            ax.plot(*read_at, "o", color=colour, markersize=diameter, clip_on=False, zorder=5)
        chance = np.geomspace(floor, 1, 200)
        ax.plot(chance, chance, color="#c8c8c8", linewidth=1, zorder=1)
        ax.axhline(point.tpr, color="#c8c8c8", linewidth=1, linestyle="--", zorder=1)
        ax.set_xscale("log")
        ax.set_xlim(floor, 1)
        ax.set_ylim(0, 1)
        decades = [10.0**power for power in range(-6, 1) if 10.0**power > 4 * floor]
        ax.set_xticks([floor, *decades], ["0", *(f"{100 * rate:g} %" for rate in decades)])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(PER_CENT)
    other = {"ood": "ID images flagged as OOD", "id": "OOD images taken for ID"}[point.positive]
    detected = {"ood": "OOD images detected", "id": "ID images accepted"}[point.positive]
    figure.supxlabel(f"false-positive rate ({other}), logarithmic", fontsize=9.5, color=INK)
    figure.supylabel(f"true-positive rate ({detected})", fontsize=9.5, color=INK)
    return figure


def pr_curves(arms: Mapping[str, ArmScores], point: OperatingPoint) -> Figure:
    """Draw precision–recall curves of all arms, one panel per OOD set, at the protocol's ratio of OOD to ID images.

    Args:
        arms: Scores of each arm by its name; all arms have the same OOD sets.
        point: The positive class and the ratio of OOD to ID images.

    Returns:
        The figure.
    """
    figure, panels = _curve_panels(arms)
    for name, ax in panels.items():
        for arm, (colour, style) in arm_styles(arms).items():
            scores = arms[arm]
            curve = pr_curve(
                scores.id_scores,
                scores.ood_scores[name],
                positive=point.positive,
                ood_per_id=point.ood_per_id,
            )
            ax.step(
                curve.recall,
                curve.precision,
                where="pre",
                color=colour,
                linestyle=style,
                linewidth=1.7,
                clip_on=False,
            )
        any_arm = next(iter(arms.values()))
        ratio = point.ood_per_id or len(any_arm.ood_scores[name]) / len(any_arm.id_scores)
        share = ratio / (1 + ratio)
        ax.axhline(share if point.positive == "ood" else 1 - share, color="#c8c8c8", linewidth=1, zorder=1)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1)
        ax.xaxis.set_major_formatter(PER_CENT)
        ax.yaxis.set_major_formatter(PER_CENT)
    positives = point.positive.upper()
    figure.supxlabel(f"recall ({positives} images detected)", fontsize=9.5, color=INK)
    figure.supylabel(f"precision (flagged images that are {positives})", fontsize=9.5, color=INK)
    return figure


def _set_names(arms: Mapping[str, ArmScores]) -> list[str]:
    return list(next(iter(arms.values())).ood_scores)


def _threshold_label(point: OperatingPoint) -> str:
    detected = {"ood": "OOD images score above it", "id": "ID images score below it"}[point.positive]
    return f"threshold: {100 * point.tpr:g} % of {detected}"


def _curve_panels(arms: Mapping[str, ArmScores]) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with a legend of the arms, and its panel for each OOD set, in a grid with few holes."""
    names = _set_names(arms)
    columns = min((3, 4, 2), key=lambda wide: -len(names) % wide) if len(names) > 3 else len(names)
    rows = ceil(len(names) / columns)
    figure, axes = new_figure(rows, columns, size=(max(4.8, 0.5 + 3.1 * columns), 0.8 + 2.6 * rows))
    flat = [ax for row in axes for ax in row]
    for ax in flat[len(names) :]:
        ax.set_visible(False)
    panels = dict(zip(names, flat, strict=False))
    for name, ax in panels.items():
        ax.set_title(in_two_lines(name, 36), fontsize=10, color=INK)
    styles = arm_styles(arms)
    legend_above(
        figure,
        [
            (Line2D([], [], color=styles[arm][0], linestyle=styles[arm][1], linewidth=2), literal(scores.label))
            for arm, scores in arms.items()
        ],
    )
    return figure, panels


def _score_axes(arms: Mapping[str, ArmScores]) -> dict[str, tuple[Floats, bool]]:
    """Return the bin edges of each arm, and whether they are log-spaced."""
    common, common_is_log = _bin_edges(arms.values())
    own = {arm: _bin_edges([scores]) for arm, scores in arms.items()}
    if common_is_log or all(
        edges[-1] - edges[0] > OWN_AXIS_BELOW * (common[-1] - common[0]) for edges, _ in own.values()
    ):
        return dict.fromkeys(arms, (common, common_is_log))
    return own


def _bin_edges(arms: Iterable[ArmScores]) -> tuple[Floats, bool]:
    """Return edges `[BINS + 1]` that enclose 99.9 % of the scores, and whether they are log-spaced."""
    every = np.concatenate(
        [part.double().numpy() for arm in arms for part in (arm.id_scores, *arm.ood_scores.values())]
    )
    finite = every[np.isfinite(every)]
    positive = finite[finite > 0]
    if len(positive) and finite.min() >= 0:
        low, high = np.quantile(positive, [0.001, 1.0])
        if high > low * 10**LOG_DECADES:
            return np.geomspace(low, 1.2 * high, BINS + 1), True
    low, high = np.quantile(finite, [0.0005, 0.9995]) if len(finite) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1), False


def _relative_heights(scores: Tensor, edges: Floats) -> Floats:
    """Return counts `[BINS]` relative to the largest; scores beyond an end are counted in the last bin there."""
    counts = np.histogram(scores.double().numpy().clip(edges[0], edges[-1]), edges)[0]
    heights: Floats = counts / counts.max()
    return heights


def _with_points_between(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return a line with points interpolated: the straight segment of a tie is curved on a logarithmic axis."""
    corners = np.arange(len(x))
    positions = np.union1d(corners, np.linspace(0, len(x) - 1, 500))
    return np.interp(positions, corners, x), np.interp(positions, corners, y)


def _operating_index(tpr: Tensor, point: OperatingPoint) -> int:
    """Return the index of the first threshold at which enough positives are detected."""
    # No tolerance is needed: a rate k / P that reaches the level as a fraction also does as its nearest float64.
    return int(torch.searchsorted(tpr, point.tpr))


def _mark_threshold(ax: Axes, id_scores: Tensor, ood_scores: Tensor, point: OperatingPoint) -> None:
    curve = roc_curve(id_scores, ood_scores, positive=point.positive)
    at = _operating_index(curve.tpr, point)
    low, high = ax.get_xlim()
    threshold = min(max(float(curve.thresholds[at]), low), high)
    ax.axvline(threshold, color=INK, linewidth=1, linestyle="--")
    # Write the FPR on the side that the line does not cross.
    across = ax.transAxes.inverted().transform(ax.transData.transform((threshold, 0)))[0]
    side, place = ("left", 0.03) if across > 0.5 else ("right", 0.97)
    label = f"{point.name}  {100 * float(curve.fpr[at]):.1f} %"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.8}
    ax.text(place, 0.96, label, transform=ax.transAxes, ha=side, va="top", fontsize=8.5, color=INK, bbox=box)
