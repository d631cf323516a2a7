"""Report of a run: the results table for the terminal, and a self-contained HTML page with figures."""

from fastood.train.report.learnt_weights import LearntWeights
from fastood.train.report.page import write_report
from fastood.train.report.results_table import metrics_table, metrics_tables

__all__ = ["LearntWeights", "metrics_table", "metrics_tables", "write_report"]
