"""Tables of detectors for the terminal, one or more for each arm."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fastood.console.wording import joined
from fastood.train.report.result_rows import Metric, per_cent, protocol_sentence, reported_metrics
from fastood.train.report.table_layout import PIPE_WIDTH, in_blocks, legend_lines, needed_width, short_heads

MEAN = "Mean"


def detector_tables(document: Mapping[str, Any], *, width: int = PIPE_WIDTH) -> list[Table]:
    """Lay out detectors as rows and OOD sets as columns, one block of rows per metric, in per cent.

    The best detector of each column is bold; values that are equal as printed are equally best.

    Args:
        document: Contents of detectors.json.
        width: Columns of the terminal; columns that do not fit go into further tables.

    Returns:
        One or more tables for each arm with at least one detector.
    """
    tables: list[Table] = []
    for arm in document["arms"].values():
        if arm["detectors"]:
            whole = partial(_table, document, arm, broken_names=False)
            fits = needed_width(whole([0])) <= width
            build = whole if fits else partial(_table, document, arm, broken_names=True)
            tables += in_blocks(build, len(_columns(arm)), width)
    return tables


def skipped_lines(document: Mapping[str, Any]) -> list[str]:
    """Return a line for each arm and reason for which detectors were skipped.

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


def warning_lines(document: Mapping[str, Any]) -> list[str]:
    """Return a line for each detector of an arm that has warnings.

    Example:
        >>> backwards = {"arm": "oe", "detector": "knn", "kind": "ranks-backwards"}
        >>> warnings = [{**backwards, "message": name} for name in ("near is low", "far is low")]
        >>> warning_lines({"arms": {"oe": {"label": "OE"}}, "warnings": warnings})
        ['warning: OE, knn: near is low; far is low']
    """
    messages: dict[tuple[str, str], list[str]] = {}
    for warning in document.get("warnings", ()):
        label = document["arms"][warning["arm"]]["label"]
        messages.setdefault((label, warning["detector"]), []).append(warning["message"])
    return [f"warning: {label}, {detector}: {'; '.join(texts)}" for (label, detector), texts in messages.items()]


def notes(document: Mapping[str, Any]) -> list[str]:
    """Return the lines below the tables: protocol, shortened headings, skipped detectors and warnings."""
    evaluated = [arm for arm in document["arms"].values() if arm["detectors"]]
    lines = skipped_lines(document) + warning_lines(document)
    if evaluated:
        legend: dict[str, str] = {}
        for arm in evaluated:
            legend |= short_heads(_columns(arm))[1]
        lines = legend_lines(legend) + lines
        has_draws = document["protocol"]["ood_fraction"] is not None
        every = [detector for arm in evaluated for detector in arm["detectors"].values()]
        sentence = protocol_sentence({"protocol": document["protocol"], "arms": dict(enumerate(every))})
        lines.insert(0, f"{sentence} With --write, the std is in detectors.json." if has_draws else sentence)
    return lines


def _columns(arm: Mapping[str, Any]) -> list[str]:
    """Return the headings of the columns of an arm: its OOD sets and, if there are several, their mean."""
    sets = list(next(iter(arm["detectors"].values()))["ood"])
    return [*sets, MEAN] if len(sets) > 1 else sets


def _table(document: Mapping[str, Any], arm: Mapping[str, Any], columns: Sequence[int], *, broken_names: bool) -> Table:
    detectors = arm["detectors"]
    names = _columns(arm)
    heads, _ = short_heads(names)
    title = f"{arm['label']}: detectors, in per cent"
    if len(columns) < len(names):
        title += f": {joined([names[column] for column in columns])}"
    table = Table(
        # Text, since a string would be read as markup.
        title=Text(title, style="bold"),
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    table.add_column("Detector", no_wrap=True)
    for column in columns:
        style = "italic" if column == len(names) - 1 and names[column] == MEAN else ""
        table.add_column(Text(heads[column], style=style), justify="right", vertical="bottom", no_wrap=True)
    for metric in reported_metrics(document):
        values = {name: _values(result, metric) for name, result in detectors.items()}
        pick = max if metric.higher_is_better else min
        best = [pick(of_column, key=float) for of_column in zip(*values.values(), strict=True)]
        for position, (name, row) in enumerate(values.items()):
            heading = Text(metric.heading if position == 0 else "", style="bold")
            cells = (Text(row[column], style="bold" if row[column] == best[column] else "") for column in columns)
            table.add_row(heading, Text(short_heads([name])[0][0] if broken_names else name), *cells)
        table.add_section()
    return table


def _values(result: Mapping[str, Any], metric: Metric) -> list[str]:
    """Return a detector's means over the draws, as printed: of each OOD set and, if there are several, of all."""
    of_sets = [of_set[metric.key]["mean"] for of_set in result["ood"].values()]
    return [per_cent(value) for value in ([*of_sets, result["mean"][metric.key]] if len(of_sets) > 1 else of_sets)]
