"""What a run tells its reader: the results table in the terminal, and a page with figures that can be mailed."""

from fastood.train.report.page import write_report
from fastood.train.report.results_table import metrics_table, metrics_tables

__all__ = ["metrics_table", "metrics_tables", "write_report"]
