"""Figure of the training: loss, training accuracy and learning rate of every stage."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fastood.train.report.style import INK, arm_styles, legend_above, literal, new_figure

PANELS = (("loss", "loss"), ("accuracy", "training accuracy"), ("learning_rate", "learning rate"))
LOGARITHMIC_FROM = 20.0
"""Positive values whose largest exceeds the smallest by this factor are drawn on a logarithmic axis."""


def training_curves(stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw one panel each for loss, training accuracy and learning rate, over the steps of each stage.

    Args:
        stages: Entries of each stage, as in curves.json; at least one stage has entries.

    Returns:
        The figure; a panel without any value is left out.
    """
    shown = {name: entries for name, entries in stages.items() if entries}
    panels = [
        (key, title)
        for key, title in PANELS
        if any(entry[key] is not None for entries in shown.values() for entry in entries)
    ]
    figure, axes = new_figure(1, len(panels), size=(max(4.8, 3.4 * len(panels)), 3.4))
    styles = arm_styles(f"stage {name}" for name in shown)
    for ax, (key, title) in zip(axes[0], panels, strict=True):
        every: list[float] = []
        for name, entries in shown.items():
            points = [(entry["step"], entry[key]) for entry in entries if entry[key] is not None]
            if points:
                colour, line = styles[f"stage {name}"]
                marker = "o" if len(points) == 1 else None
                ax.plot(*zip(*points, strict=True), color=colour, linestyle=line, linewidth=1.5, marker=marker)
                every += [value for _, value in points]
        if key != "accuracy" and min(every) > 0 and max(every) > LOGARITHMIC_FROM * min(every):
            ax.set_yscale("log")
        elif min(every) >= 0:
            ax.set_ylim(0, 1.08 * max(every) or 1.0)
        if key == "accuracy":
            ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        ax.set_title(title, fontsize=10, color=INK)
    figure.supxlabel("step", fontsize=9.5, color=INK)
    legend_above(
        figure,
        [
            (Line2D([], [], color=styles[f"stage {name}"][0], linestyle=styles[f"stage {name}"][1]), literal(name))
            for name in shown
        ],
    )
    return figure
