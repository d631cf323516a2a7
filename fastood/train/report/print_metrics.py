"""Results of a run in the terminal."""

from typing import Any

from fastood.train.report.results_table import metrics_tables
from fastood.train.report.table_layout import open_console, print_tables
from fastood.train.results.sanity_checks import merged


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
