"""Handling of Ctrl-C during the imports of a command: one line instead of a traceback."""

import sys
from types import TracebackType

__all__ = ["report_interrupts"]


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped before anything was done", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def report_interrupts() -> None:
    """Report Ctrl-C in one line while `python -m` imports a command of this package."""
    # sys.argv is ["-m", …] while `python -m` imports the parent packages of the module to run.
    if sys.argv[:1] == ["-m"]:
        sys.excepthook = _report
