"""Progress line of a stage, shown on a terminal only."""

from __future__ import annotations

import sys


class Progress:
    """A count out of a total, rewritten in place."""

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._total = total
        self._done = 0
        self._shown = sys.stderr.isatty()

    def step(self, note: str = "") -> None:
        """Count one more."""
        self._done += 1
        if self._shown:
            print(f"\r\x1b[K{self._name} {self._done} of {self._total}  {note}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Remove the line."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
