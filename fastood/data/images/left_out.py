"""Counts of files and folders that are among images and are not read."""

import re
from dataclasses import dataclass

from fastood.console.wording import counted


@dataclass(frozen=True)
class LeftOut:
    """Files or folders that are not read for one reason."""

    reason: str
    """Reason, as a noun in the singular: "hidden file", "file of an unread type, .gif", …"""
    count: int
    """Number of files or folders; a folder counts as one, regardless of its contents."""
    examples: tuple[str, ...]
    """Printable names of the first ones, relative to the opened folder."""

    def __str__(self) -> str:
        """Return number, reason and examples as text.

        Example:
            >>> print(LeftOut("hidden file", 1, ("._a.jpg",)), LeftOut("other file", 4, ("a.csv", "b.csv")))
            1 hidden file (._a.jpg) 4 other files (a.csv, b.csv, …)
        """
        several = re.sub(r"\b(file|folder|image|link)\b", r"\1s", self.reason, count=1)
        more = ", …" if self.count > len(self.examples) else ""
        return f"{counted(self.count, self.reason, several)} ({', '.join(self.examples)}{more})"
