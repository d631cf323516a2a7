"""Table of a run's results for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fastood.train.report.result_rows import (
    Cell,
    check_metrics,
    explains_rate,
    is_one_class,
    mean_over_classes,
    ood_names,
    per_cent,
    protocol_sentence,
    reported_metrics,
    result_rows,
)
from fastood.train.report.table_layout import in_blocks, legend_lines, open_console, print_tables, short_heads
from fastood.train.results.sanity_checks import merged

NAME_WIDTH = 24
"""Longer names of OOD sets are wrapped."""
LABEL_WIDTH = 16
"""Characters of a line in the label of an arm."""
MIN_NAME_WIDTH = 10
"""Names of OOD sets are not wrapped to fewer characters."""
MEAN_WIDTH = len("100.00")
SPREAD_WIDTH = len(" ± 0.00")
GAP = 3


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print the tables of a metrics document and its warnings, as wide as the terminal, COLUMNS, or 110 columns.

    Args:
        metrics: Contents of metrics.json.
    """
    console = open_console()
    print_tables(metrics_tables(metrics, width=console.width))
    labels = {name: arm["label"] for name, arm in metrics["arms"].items()}
    for line in merged(metrics.get("warnings", ()), labels):
        console.print(f"warning: {line}", markup=False, highlight=False)


def metrics_tables(metrics: Mapping[str, Any], *, width: int = 100) -> list[Table]:
    """Lay out a run's results as `metrics_table` does, in as many tables as the width requires.

    A run of one-class networks has one table, with a row for each class.

    Args:
        metrics: Contents of a run's metrics.json (fractions).
        width: Columns of the terminal.

    Raises:
        ValueError: If `metrics` has another schema, or its arms have different OOD sets.
    """
    check_metrics(metrics)
    if is_one_class(metrics):
        return [_classes_table(metrics)]
    return in_blocks(lambda arms: _arms_table(metrics, arms, width), len(metrics["arms"]), width)


def metrics_table(metrics: Mapping[str, Any], *, width: int = 100) -> Table:
    """Lay out a run's results in per cent: FPR95 ↓, AUROC ↑ and AUPR ↑ per OOD set and mean, and accuracy.

    Arms are columns as in the supplementary Table 2 of Li & Vasconcelos 2020, one block of rows per metric, so that any
    number of OOD sets reads well. The best arm of each row is bold. Where the columns do not fit (80 columns, or more
    than about four arms) the spread is left out.

    Args:
        metrics: Contents of a run's metrics.json (fractions).
        width: Columns of the terminal.

    Returns:
        A table to print with `rich.print`.

    Raises:
        ValueError: If `metrics` has another schema, or its arms have different OOD sets.

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
    return _arms_table(metrics, range(len(metrics["arms"])), width)


def _arms_table(metrics: Mapping[str, Any], shown: Sequence[int], width: int) -> Table:
    """Lay out the arms at the positions `shown`, with a row for each OOD set."""
    reported = reported_metrics(metrics)
    every = list(metrics["arms"].values())
    arms = [every[number] for number in shown]
    heads, legend = short_heads([_broken(arm["label"]) for arm in every], LABEL_WIDTH)
    longest = max(len(name) for name in (*ood_names(metrics), "background images"))
    room = width - len("Trained on") - MEAN_WIDTH - 3 * GAP
    names_width = min(NAME_WIDTH, longest, max(MIN_NAME_WIDTH, room))
    arm_width = MEAN_WIDTH + SPREAD_WIDTH + GAP
    has_draws = metrics["protocol"]["repeats"] > 1
    has_spread = has_draws and len("Trained on") + names_width + 2 * GAP + len(every) * arm_width <= width
    title = f"Out-of-distribution detection, in per cent — in-distribution: {metrics['in_distribution']['name']}"
    table = Table(
        # Text, since a string would be read as markup.
        title=Text(title, style="bold") if shown[0] == 0 else None,
        caption=Text(_caption(metrics, legend, has_spread=has_spread)) if shown[-1] == len(every) - 1 else None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    table.add_column("OOD set", min_width=MIN_NAME_WIDTH, max_width=names_width, overflow="fold")
    for number in shown:
        table.add_column(Text(heads[number]), vertical="bottom", no_wrap=True, min_width=MEAN_WIDTH)
    for metric in reported:
        rows = result_rows(metrics, metric)
        for position, row in enumerate(rows):
            heading = Text(metric.heading if position == 0 else "", style="bold")
            name = Text(row.name, style="italic" if row.is_mean else "")
            table.add_row(heading, name, *(_text(row.cells[number], has_spread) for number in shown))
        table.add_section()
    accuracies = (per_cent(arm["accuracy"]).rjust(MEAN_WIDTH) for arm in arms)
    table.add_row(Text("Accuracy", style="bold"), "ID test images", *accuracies)
    counts = (f"{arm['background_size']:,}".rjust(MEAN_WIDTH) for arm in arms)
    table.add_row(Text("Trained on", style="bold"), "background images", *counts)
    return table


def _classes_table(metrics: Mapping[str, Any]) -> Table:
    """Lay out a one-class run, with a row for each network and one for their mean; no network is marked as best."""
    has_spread = metrics["protocol"]["repeats"] > 1
    title = f"One class against the others, in per cent — in-distribution: {metrics['in_distribution']['name']}"
    reported = reported_metrics(metrics)
    table = Table(
        title=Text(title, style="bold"),
        caption=Text(_caption(metrics, {}, has_spread=has_spread)),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("Class", max_width=NAME_WIDTH, overflow="fold")
    for metric in reported:
        table.add_column(metric.heading, no_wrap=True, min_width=MEAN_WIDTH)
    rows = [result_rows(metrics, metric)[0].cells for metric in reported]
    for number, arm in enumerate(metrics["arms"].values()):
        plain = (Cell(mean=cells[number].mean, std=cells[number].std, is_best=False) for cells in rows)
        table.add_row(Text(arm["label"]), *(_text(cell, has_spread) for cell in plain))
    table.add_section()
    means = (per_cent(mean_over_classes(metrics, metric)).rjust(MEAN_WIDTH) for metric in reported)
    table.add_row(Text("Mean", style="italic"), *means)
    return table


def _caption(metrics: Mapping[str, Any], legend: dict[str, str], *, has_spread: bool) -> str:
    """Return the caption: the protocol, and the full names of shortened headings."""
    has_draws = metrics["protocol"]["repeats"] > 1
    sentences = [protocol_sentence(metrics), explains_rate(metrics)]
    if has_draws and not has_spread:
        sentences.append("The std is in metrics.json.")
    return "\n".join([" ".join(filter(None, sentences)), *legend_lines(legend)])


def _broken(label: str) -> str:
    """Return a label with a line break after its comma."""
    return label.replace(", ", ",\n")


def _text(cell: Cell, has_spread: bool) -> Text:
    text = Text(cell.mean.rjust(MEAN_WIDTH), style="bold" if cell.is_best else "", no_wrap=True)
    if has_spread and cell.std is not None:
        text.append(f" ± {cell.std}", style="not bold dim")
    return text
