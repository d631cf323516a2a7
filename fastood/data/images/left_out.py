"""Files that lie among images and are not read."""

import re
from dataclasses import dataclass

from fastood.console.wording import counted


@dataclass(frozen=True)
class LeftOut:
    """Files or folders that lie among images and are not read, for one reason."""

    reason: str
    """Reason, as a noun for one of them: "hidden file", "file of an unread type, .gif", …"""
    count: int
    """Number of them; a folder counts as one, whatever it holds."""
    examples: tuple[str, ...]
    """Names of the first ones, printable, relative to the folder that was opened."""

    def __str__(self) -> str:
        """Number, reason and examples.

        Example:
            >>> print(LeftOut("hidden file", 1, ("._a.jpg",)), LeftOut("other file", 4, ("a.csv", "b.csv")))
            1 hidden file (._a.jpg) 4 other files (a.csv, b.csv, …)
        """
        several = re.sub(r"\b(file|folder|image|link)\b", r"\1s", self.reason, count=1)
        more = ", …" if self.count > len(self.examples) else ""
        return f"{counted(self.count, self.reason, several)} ({', '.join(self.examples)}{more})"
