"""The results table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fastood.report.results import (
    Cell,
    check_metrics,
    ood_names,
    per_cent,
    protocol_sentence,
    reported_metrics,
    result_rows,
)

NAME_WIDTH = 24
"""Longer names of OOD sets are wrapped."""
MIN_NAME_WIDTH = 10
MEAN_WIDTH = len("100.00")
SPREAD_WIDTH = len(" ± 0.00")
GAP = 3


def metrics_table(metrics: Mapping[str, Any], *, width: int = 100) -> Table:
    """Lays out a run's results in per cent: FPR95 ↓, AUROC ↑ and AUPR ↑ per OOD set and mean, and accuracy.

    Arms are columns as in the supplementary Table 2 of Li & Vasconcelos 2020, one block of rows per metric, so that
    any number of OOD sets reads well. The best arm of each row is bold. Where the columns do not fit (80 columns, or
    more than four or so arms) the spread is left out.

    Args:
        metrics: Contents of a run's metrics.json (fractions).
        width: Columns of the terminal.

    Returns:
        A table to print with `rich.print`.

    Raises:
        ValueError: `metrics` is not of this schema, or its arms were judged on different OOD sets.

    Example:
        >>> import rich
        >>> means = {"fpr95": 0.2046, "auroc": 0.9285, "aupr": 0.6648}
        >>> svhn = {name: {"mean": mean, "std": 0.01} for name, mean in means.items()}
        >>> svhn |= {"id_count": 10_000, "ood_count": 2_000, "repeats": 5}
        >>> arm = {"label": "No background", "accuracy": 0.9419, "background_size": 0}
        >>> metrics = {
        ...     "schema": 2,
        ...     "method": "resample",
        ...     "seed": 0,
        ...     "protocol": {
        ...         **{"name": "li2020", "positive": "ood", "ood_fraction": 0.2, "repeats": 5},
        ...         **{"tpr": 0.95, "rule": "first", "aupr_kind": "average_precision"},
        ...     },
        ...     "bootstrap": {"baseline": "none"},
        ...     "in_distribution": {"name": "CIFAR-10"},
        ...     "arms": {"none": {**arm, "ood": {"SVHN": svhn}, "mean": means}},
        ... }
        >>> rich.print(metrics_table(metrics))  # doctest: +ELLIPSIS
        Out-of-distribution detection, in per cent...
    """
    check_metrics(metrics)
    reported = reported_metrics(metrics)
    arms = metrics["arms"].values()
    names_width = min(NAME_WIDTH, max(len(name) for name in (*ood_names(metrics), "background images")))
    arm_width = MEAN_WIDTH + SPREAD_WIDTH + GAP
    has_draws = metrics["protocol"]["repeats"] > 1
    has_spread = has_draws and len("Trained on") + names_width + 2 * GAP + len(arms) * arm_width <= width
    title = f"Out-of-distribution detection, in per cent — in-distribution: {metrics['in_distribution']['name']}"
    caption = protocol_sentence(metrics) + ("" if has_spread or not has_draws else " The std is in metrics.json.")
    table = Table(
        # Text, since a string would be read as markup.
        title=Text(title, style="bold"),
        caption=Text(caption),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    table.add_column("OOD set", min_width=MIN_NAME_WIDTH, max_width=names_width)
    for arm in arms:
        table.add_column(Text(arm["label"].replace(", ", ",\n")), vertical="bottom", no_wrap=True, min_width=MEAN_WIDTH)
    for metric in reported:
        rows = result_rows(metrics, metric)
        for position, row in enumerate(rows):
            heading = Text(metric.heading if position == 0 else "", style="bold")
            name = Text(row.name, style="italic" if row.is_mean else "")
            table.add_row(heading, name, *(_text(cell, has_spread) for cell in row.cells))
        table.add_section()
    accuracies = (per_cent(arm["accuracy"]).rjust(MEAN_WIDTH) for arm in arms)
    table.add_row(Text("Accuracy", style="bold"), "ID test images", *accuracies)
    counts = (f"{arm['background_size']:,}".rjust(MEAN_WIDTH) for arm in arms)
    table.add_row(Text("Trained on", style="bold"), "background images", *counts)
    return table


def _text(cell: Cell, has_spread: bool) -> Text:
    text = Text(cell.mean.rjust(MEAN_WIDTH), style="bold" if cell.is_best else "", no_wrap=True)
    if has_spread and cell.std is not None:
        text.append(f" ± {cell.std}", style="not bold dim")
    return text
