"""Tables that fit a terminal: heads broken between words, columns in as many blocks as it takes, numbers whole."""

import re
import shutil
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

PIPE_WIDTH = 110
"""Columns of a pipe or a file where COLUMNS says nothing."""
HEAD_WIDTH = 12
"""Letters of the longest word in a head; a longer one is broken after a hyphen or the like, or shortened."""


def open_console() -> Console:
    """Return a console as wide as the terminal; into a pipe or a file, as wide as COLUMNS says, or 110 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=shutil.get_terminal_size((PIPE_WIDTH, 24)).columns)


def print_tables(tables: Iterable[Table]) -> None:
    """Print tables one below the other, each as wide as it needs: a narrower terminal breaks lines, not numbers."""
    for table in tables:
        Console(width=max(open_console().width, needed_width(table))).print(table)


def needed_width(table: Table) -> int:
    """Return the columns that a table takes when nothing in it is broken."""
    wide = Console(width=100_000)
    return Measurement.get(wide, wide.options, table).maximum


def in_blocks(build: Callable[[Sequence[int]], Table], count: int, width: int) -> list[Table]:
    """Return tables of as many columns each as fit.

    Args:
        build: Makes the table of the columns with these numbers, ascending.
        count: How many columns there are.
        width: Columns of the terminal.

    Returns:
        One table or more; a column that does not fit alone has one of its own.
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
    r"""Return heads of at most `width` letters a line, and what those stand for that are shortened.

    Args:
        names: Names as they are.
        width: Letters of a line.

    Returns:
        A head of one or more lines for each name, and shortened head → name.

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
                number = 1 + sum(known.startswith(name[: width - 2].rstrip()) for known in legend)
                head = f"{name[: width - 1 - len(str(number))].rstrip()}…{number}"
            legend[head] = name.replace("\n", " ")
            heads.append(head)
        else:
            heads.append("\n".join(lines))
    return heads, legend


def legend_lines(legend: dict[str, str]) -> list[str]:
    """Return a line for each shortened head.

    Example:
        >>> legend_lines({"pneumonoult…": "pneumonoultramicroscopic"})
        ['pneumonoult…: pneumonoultramicroscopic']
    """
    return [f"{head}: {name}" for head, name in legend.items()]


def _shortens(name: str, head: str, width: int) -> bool:
    return any(len(line) > width for line in _lines(name, width)) and f"{name[: width - 1].rstrip()}…" == head


def _lines(name: str, width: int) -> list[str]:
    """Break a name at its line ends and between words, and within a long word after - _ / . only."""
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
