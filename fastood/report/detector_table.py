"""Tables of a run's detectors for the terminal: one for each arm."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fastood.report.results import Metric, per_cent, protocol_sentence, reported_metrics

MEAN = "Mean"
NAME_WIDTH = 14
"""Longer names of OOD sets are wrapped."""


def detector_tables(document: Mapping[str, Any]) -> list[Table]:
    """Lays out detectors as rows and OOD sets as columns, one block of rows per metric, in per cent.

    The best detector of each column is bold; equal prints are equally best.

    Args:
        document: Contents of detectors.json.

    Returns:
        A table for each arm that any detector goes with.
    """
    return [_table(document, arm) for arm in document["arms"].values() if arm["detectors"]]


def skipped_lines(document: Mapping[str, Any]) -> list[str]:
    """A line for each arm and reason that detectors were left out for.

    Example:
        >>> skipped = {"dice": "no linear head", "ash": "no linear head"}
        >>> skipped_lines({"arms": {"full": {"label": "Full", "detectors": {}, "skipped": skipped}}})
        ['Full: no dice, ash: no linear head']
    """
    lines = []
    for arm in document["arms"].values():
        for reason in dict.fromkeys(arm["skipped"].values()):
            names = ", ".join(name for name, why in arm["skipped"].items() if why == reason)
            lines.append(f"{arm['label']}: no {names}: {reason}")
    return lines


def notes(document: Mapping[str, Any]) -> list[str]:
    """What the tables do not say: what their numbers depend on, and why detectors were left out of which arm."""
    judged = [arm["detectors"] for arm in document["arms"].values() if arm["detectors"]]
    lines = skipped_lines(document)
    if judged:
        has_draws = document["protocol"]["ood_fraction"] is not None
        sentence = protocol_sentence({"protocol": document["protocol"], "arms": judged[0]})
        lines.insert(0, f"{sentence} The std goes into detectors.json by --write." if has_draws else sentence)
    return lines


def _table(document: Mapping[str, Any], arm: Mapping[str, Any]) -> Table:
    detectors = arm["detectors"]
    sets = list(next(iter(detectors.values()))["ood"])
    table = Table(
        # Text, since a string would be read as markup.
        title=Text(f"{arm['label']}: detectors, in per cent", style="bold"),
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    table.add_column("Detector", no_wrap=True)
    for name in (*sets, MEAN):
        style = "italic" if name == MEAN else ""
        table.add_column(
            Text(name, style=style), justify="right", vertical="bottom", max_width=NAME_WIDTH, overflow="fold"
        )
    for metric in reported_metrics(document):
        values = {name: _values(found, sets, metric) for name, found in detectors.items()}
        pick = max if metric.higher_is_better else min
        best = [pick(column, key=float) for column in zip(*values.values(), strict=True)]
        for position, (name, row) in enumerate(values.items()):
            heading = Text(metric.heading if position == 0 else "", style="bold")
            cells = (
                Text(value, style="bold" if value == of_best else "") for value, of_best in zip(row, best, strict=True)
            )
            table.add_row(heading, name, *cells)
        table.add_section()
    return table


def _values(found: Mapping[str, Any], sets: list[str], metric: Metric) -> list[str]:
    """A detector's means over the draws, of each set and of all."""
    of_sets = [found["ood"][name][metric.key]["mean"] for name in sets]
    return [per_cent(value) for value in (*of_sets, found["mean"][metric.key])]
