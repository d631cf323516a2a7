"""Figure of the effective sample size of a background pool over its steps."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from fastood.train.report.style import INK, QUIET, new_figure

# Not the colour of an arm.
COLOUR = "#762a83"
MAX_POINTS = 2000
"""Points of the curve, at most; of more steps, each point is the mean of equally many: a page has no finer pixels."""


def effective_sample_size_curve(sizes: Tensor, pool_size: int) -> Figure:
    """Draw the effective sample size after each step, with a line at the size of the pool: that of equal weights.

    Args:
        sizes: Effective sample sizes `[T]`, T at least 2.
        pool_size: N, images in the pool.

    Returns:
        The figure.

    Example:
        >>> import torch
        >>> figure = effective_sample_size_curve(torch.linspace(100.0, 40.0, 30), 100)
        >>> float(figure.axes[0].get_ylim()[0])
        0.0
    """
    figure, [[ax]] = new_figure(1, 1, size=(8.4, 2.9))
    groups = np.array_split(sizes.double().numpy(), min(len(sizes), MAX_POINTS))
    steps = np.cumsum([len(group) for group in groups])
    means = np.array([group.mean() for group in groups])
    ax.plot(steps, means, color=COLOUR, linewidth=1.6)
    ax.axhline(pool_size, color=QUIET, linewidth=1, linestyle="--", zorder=0)
    ax.annotate(
        "equal weights",
        (0.995, pool_size),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color=QUIET,
    )
    ax.annotate(
        f"{means[-1]:,.0f}",
        (steps[-1], means[-1]),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=COLOUR,
        annotation_clip=False,
    )
    ax.set_xlim(0, steps[-1])
    ax.set_ylim(0, 1.12 * pool_size)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set_xlabel("step", fontsize=9.5, color=INK)
    ax.set_ylabel("images", fontsize=9.5, color=INK)
    return figure
