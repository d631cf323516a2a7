"""Ctrl-C while a command still imports what it needs: a word, not a traceback."""

import sys
from types import TracebackType


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped before anything was done", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def report_interrupts() -> None:
    """Report Ctrl-C in a word while a command of this package is imported."""
    # So argv is called while `python -m` imports the package of the module that it is to run.
    if sys.argv[:1] == ["-m"]:
        sys.excepthook = _report
