"""Tables of the report page, as rows and cells that the template prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastood.train.report.differences import compared_arms, difference_rows
from fastood.train.report.learnt_weights import SourceWeights
from fastood.train.report.result_rows import per_cent, reported_metrics, result_rows
from fastood.train.report.score_figures import OperatingPoint
from fastood.train.report.style import arm_styles

ARMS_PER_TABLE = 5
"""Columns of arms in one table; further arms go into further tables."""
SHOWN_SOURCES = 24
"""Sources in the table of a pool; of more sources, the half of this number at either end."""


def arm_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each arm: label, colour, size of its background, accuracy and mean metrics."""
    means = [result_rows(metrics, metric)[-1].cells for metric in reported_metrics(metrics)]
    styles = arm_styles(metrics["arms"])
    return [
        {
            "label": _broken_at_comma(result["label"]),
            "colour": styles[arm][0],
            "background_size": result["background_size"],
            "accuracy": per_cent(result["accuracy"]),
            "means": [cells[position] for cells in means],
        }
        for position, (arm, result) in enumerate(metrics["arms"].items())
    ]


def column_groups(count: int) -> list[range]:
    """Return the arms of each table that has arms as columns, so that no table is wider than the page.

    Example:
        >>> column_groups(7)
        [range(0, 5), range(5, 7)]
    """
    return [range(first, min(first + ARMS_PER_TABLE, count)) for first in range(0, count, ARMS_PER_TABLE)]


def metric_blocks(metrics: Mapping[str, Any], point: OperatingPoint) -> list[dict[str, Any]]:
    """Return heading, meaning and rows of each metric: one row for each OOD set."""
    level = f"{100 * point.tpr:g} %"
    meanings = {
        "fpr95": {
            "ood": f"In-distribution images wrongly flagged at the threshold that flags {level} of the OOD images.",
            "id": f"OOD images wrongly accepted at the threshold that accepts {level} of the in-distribution images.",
        }[point.positive],
        "auroc": "How often an OOD image scores above an in-distribution image; 50 is chance.",
        "aupr": f"Average precision of finding the {point.positive.upper()} images; "
        "their share among all images is chance.",
    }
    return [
        {
            "heading": metric.heading,
            "meaning": meanings[metric.key],
            "rows": [row for row in result_rows(metrics, metric) if not row.is_mean],
        }
        for metric in reported_metrics(metrics)
    ]


def difference_table(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the table of differences from the baseline; None for a run of one arm or without a baseline."""
    compared = compared_arms(metrics)
    if not compared:
        return None
    bootstrap = metrics["bootstrap"]
    styles = arm_styles(metrics["arms"])
    return {
        "baseline": metrics["arms"][bootstrap["baseline"]]["label"],
        "level": f"{100 * bootstrap['level']:g} %",
        "replicates": bootstrap["replicates"],
        "alpha": f"{1 - bootstrap['level']:g}",
        "groups": column_groups(len(compared)),
        "arms": [
            {"label": _broken_at_comma(metrics["arms"][arm]["label"]), "colour": styles[arm][0]} for arm in compared
        ],
        "blocks": [
            {"heading": metric.heading, "rows": difference_rows(metrics, metric)}
            for metric in reported_metrics(metrics)
        ],
    }


def shown_sources(sources: Sequence[SourceWeights]) -> list[SourceWeights]:
    """Return all sources of a pool or, of more than `SHOWN_SOURCES`, those at either end."""
    if len(sources) <= SHOWN_SOURCES:
        return list(sources)
    half = SHOWN_SOURCES // 2
    return [*sources[:half], *sources[-half:]]


def pool_table(metrics: Mapping[str, Any], sources: Sequence[SourceWeights]) -> dict[str, Any]:
    """Return the pool's counts and a row for each source that is shown.

    Raises:
        ValueError: If `metrics` has no pool or lacks one of the sources.
    """
    if "pool" not in metrics:
        raise ValueError("metrics lacks pool, but pool weights are given")
    recorded = metrics["pool"]["sources"]
    unknown = {source.name for source in sources} - recorded.keys()
    if unknown:
        raise ValueError(f"metrics records no pool source {', '.join(sorted(unknown))}")
    size = sum(len(source.weights) for source in sources)
    selected = sum(record["selected"] for record in recorded.values())
    rows = [
        {
            "name": source.name,
            "count": len(source.weights),
            "pool_share": f"{100 * len(source.weights) / size:.1f}",
            "mean_weight": f"{source.mean:.3f}",
            "selected": recorded[source.name]["selected"],
            "selected_share": f"{100 * recorded[source.name]['selected'] / max(selected, 1):.1f}",
        }
        for source in shown_sources(sources)
    ]
    return {
        "size": size,
        "effective_sample_size": metrics["pool"]["effective_sample_size"],
        "sources": rows,
        "source_count": len(sources),
    }


def _broken_at_comma(label: str) -> str:
    """Return the label with a line break allowed after its comma only: "γ = 1 %" stays in one piece."""
    name, comma, setting = label.partition(", ")
    return name + comma + setting.replace(" ", "\N{NO-BREAK SPACE}")
