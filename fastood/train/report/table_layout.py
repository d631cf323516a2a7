"""Layout of tables that fit a terminal: headings are broken and columns split into blocks; numbers never wrap."""

import re
import shutil
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

PIPE_WIDTH = 110
"""Width of a pipe or a file if COLUMNS is not set."""
HEAD_WIDTH = 12
"""Characters of the longest word in a heading; a longer word is broken after - _ / or ., or shortened."""


def open_console() -> Console:
    """Return a console as wide as the terminal or, for a pipe or a file, as COLUMNS, which is 110 by default."""
    console = Console()
    return console if console.is_terminal else Console(width=shutil.get_terminal_size((PIPE_WIDTH, 24)).columns)


def print_tables(tables: Iterable[Table]) -> None:
    """Print tables one below the other, at their full width: a narrower terminal wraps lines, not numbers."""
    for table in tables:
        Console(width=max(open_console().width, needed_width(table))).print(table)


def needed_width(table: Table) -> int:
    """Return the width of a table without line breaks in its cells."""
    wide = Console(width=100_000)
    return Measurement.get(wide, wide.options, table).maximum


def in_blocks(build: Callable[[Sequence[int]], Table], count: int, width: int) -> list[Table]:
    """Split columns into tables that fit the terminal.

    Args:
        build: Function from column numbers, ascending, to a table of these columns.
        count: Number of columns.
        width: Width of the terminal.

    Returns:
        One or more tables; a single column that does not fit has a table to itself.
    """
    blocks: list[Table] = []
    first = 0
    while first < count:
        last = first + 1
        while last < count and needed_width(build(range(first, last + 1))) <= width:
            last += 1
        blocks.append(build(range(first, last)))
        first = last
    return blocks


def short_heads(names: Sequence[str], width: int = HEAD_WIDTH) -> tuple[list[str], dict[str, str]]:
    r"""Break or shorten names to headings with lines of at most `width` characters.

    Args:
        names: Full names.
        width: Characters of a line.

    Returns:
        Headings, of one or more lines, in the order of the names; and the full name of each shortened heading.

    Example:
        >>> short_heads(["held-out digits", "tiny-imagenet-resized", "photographs"])
        (['held-out\ndigits', 'tiny-\nimagenet-\nresized', 'photographs'], {})
        >>> short_heads(["pneumonoultramicroscopic", "pneumonoultraviolet"])[1]
        {'pneumonoul…1': 'pneumonoultramicroscopic', 'pneumonoul…2': 'pneumonoultraviolet'}
    """
    heads: list[str] = []
    legend: dict[str, str] = {}
    for name in names:
        lines = _lines(name, width)
        if any(len(line) > width for line in lines):
            head = f"{name[: width - 1].rstrip()}…"
            if head in heads or sum(_shortens(other, head, width) for other in names) > 1:
                number = 1 + sum(other.startswith(name[: width - 2].rstrip()) for other in legend)
                head = f"{name[: width - 1 - len(str(number))].rstrip()}…{number}"
            legend[head] = name.replace("\n", " ")
            heads.append(head)
        else:
            heads.append("\n".join(lines))
    return heads, legend


def legend_lines(legend: dict[str, str]) -> list[str]:
    """Return a line for each shortened heading with its full name.

    Example:
        >>> legend_lines({"pneumonoult…": "pneumonoultramicroscopic"})
        ['pneumonoult…: pneumonoultramicroscopic']
    """
    return [f"{head}: {name}" for head, name in legend.items()]


def _shortens(name: str, head: str, width: int) -> bool:
    return any(len(line) > width for line in _lines(name, width)) and f"{name[: width - 1].rstrip()}…" == head


def _lines(name: str, width: int) -> list[str]:
    """Break a name at its line breaks and between words, and a long word only after - _ / or a dot."""
    lines: list[str] = []
    for segment in name.split("\n"):
        parts: list[str] = []
        for word in segment.split():
            pieces = [word] if len(word) <= width else re.findall(r"[^-_/.]*[-_/.]+|[^-_/.]+", word)
            parts += [piece if position else f" {piece}" for position, piece in enumerate(pieces)]
        begins = True
        for part in parts:
            if begins or len(lines[-1] + part) > width:
                lines.append(part.strip())
            else:
                lines[-1] += part
            begins = False
    return lines or [name]
