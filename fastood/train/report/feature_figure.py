"""Figure of a boundary in feature space: features in a plane, and the two factors of the score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastood.train.report.style import (
    BLUE,
    GREEN,
    ID_COLOUR,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    legend_above,
    literal,
    new_figure,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fastood.train.feature_map import FeatureMap

COLOURS = (VERMILION, BLUE, PURPLE, ORANGE, GREEN, SKY)
MARKERS = ("o", "^", "s", "v", "D", "<")
SYNTHETIC_MARKERS = ("x", "+")
Entry = tuple[Artist | tuple[Artist, ...], str]
SHOWN = 0.01
"""Fraction of test images at either end of an axis that may lie outside."""
LINES = 5
"""Number of lines of equal score."""


def feature_figure(shown: FeatureMap) -> Figure:
    """Draw two panels: all kinds of points in the plane, and p₁ over p₂ of the test images."""
    figure, axes = new_figure(1, 2, size=(9.2, 4.6))
    plane, odds = axes[0]
    entries = _scatter(plane, shown.id_plane, shown.ood_plane)
    for marker, (name, points) in zip(SYNTHETIC_MARKERS, shown.synthetic_plane.items(), strict=False):
        x, y = points.T.numpy()
        entries.append((plane.scatter(x, y, s=16, marker=marker, color=INK, linewidths=0.7, alpha=0.7), name))
    _scatter(odds, shown.id_odds, shown.ood_odds)
    _lines_of_equal_score(odds)
    _limit(plane, torch.cat([shown.id_plane, *shown.ood_plane.values()]))
    plane.set(xticks=[], yticks=[])
    plane.set_title("features, first two principal components", fontsize=10, color=INK)
    odds.set_title("the two factors of the score", fontsize=10, color=INK)
    odds.set_xlabel("log-odds of p₂ (in-distribution)", fontsize=9.5, color=INK)
    odds.set_ylabel("log-odds of p₁ (of this class)", fontsize=9.5, color=INK)
    legend_above(figure, entries)
    return figure


def _scatter(ax: Axes, of_id: Tensor, of_ood: Mapping[str, Tensor]) -> list[Entry]:
    """Draw in-distribution points below OOD sets, and return their legend entries."""
    x, y = of_id.T.numpy()
    entries: list[Entry] = [(ax.scatter(x, y, s=7, color=ID_COLOUR, alpha=0.6, linewidths=0), "in-distribution")]
    for i, (name, points) in enumerate(of_ood.items()):
        x, y = points.T.numpy()
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        entries.append((ax.scatter(x, y, s=12, color=colour, marker=marker, alpha=0.8, linewidths=0), literal(name)))
    return entries


def _limit(ax: Axes, points: Tensor) -> None:
    """Limit the axes to the central quantiles of the points: a few distant points would leave the rest no space."""
    low, high = torch.quantile(points, torch.tensor([SHOWN, 1 - SHOWN]), dim=0)
    room = 0.15 * (high - low).clamp_min(1e-6)
    (left, bottom), (right, top) = (low - room).tolist(), (high + room).tolist()
    ax.set(xlim=(left, right), ylim=(bottom, top))


def _lines_of_equal_score(ax: Axes) -> None:
    """Draw lines along which p₁ p₂ is constant, at levels between the extremes of the visible area."""
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    x = torch.linspace(left, right, 200)
    y = torch.linspace(low, high, 200)
    grid = torch.nn.functional.logsigmoid(x)[None] + torch.nn.functional.logsigmoid(y)[:, None]
    levels = torch.linspace(float(grid.min()), float(grid.max()), LINES + 2)[1:-1]
    style: dict[str, Any] = {"colors": "#bbbbbb", "linestyles": "--", "linewidths": 0.8}
    ax.contour(x.numpy(), y.numpy(), grid.numpy(), levels=levels.numpy(), **style)
