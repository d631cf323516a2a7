"""What a run tells its reader: the results table in the terminal, and a page with figures that can be mailed."""

from fastood.report.html import write_report
from fastood.report.table import metrics_table

__all__ = ["metrics_table", "write_report"]
