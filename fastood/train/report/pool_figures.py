"""Figures of the background pool: learnt weights by source, and contact sheets of images."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from torch import Tensor

from fastood.train.report.learnt_weights import SourceWeights, relative_weights, weight_label
from fastood.train.report.style import INK, QUIET, in_two_lines, legend_above, literal, new_figure

if TYPE_CHECKING:
    from fastood.data.images.image_set import ImageSet

# Neither is the colour of an arm.
UP_COLOUR = "#762a83"
DOWN_COLOUR = "#757575"
BINS = 60
MAX_DECADES = 6
"""Weights more than this many decades below the largest are drawn at the left end."""
SHEET_COLUMNS = 8
# Inches. A cell is higher than wide to leave room for the caption under its image.
CELL_WIDTH, CELL_HEIGHT, CELL_GAP = 1.3, 1.78, 0.1


def weight_distribution(sources: Sequence[SourceWeights]) -> Figure:
    """Draw the distribution of the relative weights of each source, one row per source.

    Each silhouette is a histogram over the logarithm of the weight. Its height is logarithmic, too, because a few
    images of large weight move a mean. The bar spans the middle half of the images, the dot is their mean. Sources with
    a mean above 1 are purple, others grey.

    Args:
        sources: Sources in the order of the rows.

    Returns:
        The figure.
    """
    figure, [[ax]] = new_figure(1, 1, size=(8.4, max(2.2, 0.9 + 0.56 * len(sources))))
    every = np.concatenate([source.weights.numpy() for source in sources])
    positive = every[every > 0]
    high = positive.max() * 1.1
    low = max(positive.min() / 1.1, high / 10**MAX_DECADES)
    edges = np.geomspace(low, high, BINS + 1)
    counts = [np.histogram(source.weights.numpy().clip(low, high), edges)[0] for source in sources]
    tallest = max(np.log1p(count.max()) for count in counts)
    for row, (source, count) in enumerate(zip(reversed(sources), reversed(counts), strict=True)):
        colour = UP_COLOUR if source.mean > 1 else DOWN_COLOUR
        heights = row + 0.78 * np.log1p(count) / tallest
        ax.stairs(heights, edges, baseline=row, fill=True, color=colour, alpha=0.3)
        middle_half = np.quantile(source.weights.numpy(), [0.25, 0.75]).clip(low, high)
        ax.plot(middle_half, [row, row], color=colour, linewidth=4, solid_capstyle="butt")
        ax.plot(source.mean, row, "o", color=colour, markersize=7.5, markeredgecolor="white")
        label = weight_label(source.mean)
        at = (1.01, row + 0.25)
        ax.annotate(label, at, xycoords=("axes fraction", "data"), va="center", fontsize=9, color=colour)
    ax.axvline(1, color=QUIET, linewidth=1, linestyle="--", zorder=0)
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.set_ylim(-0.3, len(sources))
    ax.set_yticks(
        [row + 0.25 for row in range(len(sources))],
        [
            f"{literal(shorten(source.name, 42, placeholder='…'))}\n{len(source.weights):,} images"
            for source in reversed(sources)
        ],
    )
    ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=9)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel("learnt weight, pool mean = 1 (logarithmic)", fontsize=9.5, color=INK)
    legend_above(
        figure,
        [
            (Patch(color=UP_COLOUR, alpha=0.4, linewidth=0), "weighted up"),
            (Patch(color=DOWN_COLOUR, alpha=0.4, linewidth=0), "weighted down"),
            (Line2D([], [], color=QUIET, linewidth=3.5), "middle half of the images"),
            (Line2D([], [], color=QUIET, marker="o", linestyle="none"), "mean"),
        ],
    )
    return figure


def check_drawable(background: ImageSet) -> None:
    """Check that images have 1 channel (grey) or 3 channels (RGB).

    Raises:
        ValueError: If they have another number of channels.
    """
    channels = background.images.shape[1]
    if channels not in (1, 3):
        raise ValueError(f"background images must have 1 or 3 channels to be drawn, got {channels}")


def contact_sheet(background: ImageSet, weights: Tensor, index: Tensor) -> Figure:
    """Draw background images, each with its relative weight and its source below.

    Args:
        background: Images of the pool.
        weights: Weights of all images in the pool, `[N]`.
        index: Images to show, in this order, int64 `[n]`.

    Returns:
        The figure, with `SHEET_COLUMNS` images in a row.

    Raises:
        ValueError: If the images have neither 1 nor 3 channels, or `relative_weights` refuses the weights.
    """
    check_drawable(background)
    relative = relative_weights(weights)
    rows = max(1, ceil(len(index) / SHEET_COLUMNS))
    width, height = SHEET_COLUMNS * CELL_WIDTH, rows * CELL_HEIGHT
    figure = Figure(figsize=(width, height))
    for place, position in enumerate(index.tolist()):
        row, column = divmod(place, SHEET_COLUMNS)
        left, top = column * CELL_WIDTH, height - row * CELL_HEIGHT
        side = CELL_WIDTH - CELL_GAP
        x, y = (left + CELL_GAP / 2) / width, (top - CELL_GAP / 2 - side) / height
        ax = figure.add_axes((x, y, side / width, side / height))
        ax.set_axis_off()
        pixels = background.pixels(index[place : place + 1])[0].permute(1, 2, 0)
        # One channel is drawn as grey. No smoothing, so that the figure shows the pixels that the network saw.
        ax.imshow(pixels.expand(-1, -1, 3).numpy(), interpolation="nearest")
        source = background.source_names[int(background.source[position])]
        centred: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": "top"}
        ax.text(0.5, -0.04, weight_label(float(relative[position])), fontsize=9, color=INK, **centred)
        ax.text(0.5, -0.19, in_two_lines(source, 19), fontsize=7, color=QUIET, **centred)
    return figure
