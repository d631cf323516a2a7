"""Help texts in the width of the terminal, from paragraphs of docstrings."""

import io
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields, is_dataclass
from fnmatch import fnmatch
from functools import cache
from inspect import get_annotations
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro

T = TypeVar("T")
_ITEM = re.compile(r"[\w⁻-]+( [\w⁻-]+)?: ")
_LONG_NUMBER = re.compile(r"(\d\.\d{4})\d{8,}")


def paragraph(text: str) -> str:
    r"""Join the lines of a docstring; an item such as "paper: …" begins a new line.

    Example:
        >>> print(paragraph("Where the\n    defaults come from.\n    paper: from the paper\n    (a PDF)."))
        Where the defaults come from.
        paper: from the paper (a PDF).
    """
    lines: list[str] = []
    for line in (line.strip() for line in text.strip().splitlines()):
        if not lines or not line or not lines[-1] or (_ITEM.match(line) and lines[-1][-1] in ".:;"):
            lines.append(line)
        else:
            lines[-1] += f" {line}"
    return "\n".join(lines)


def describe_fields(kind: Any) -> None:
    """Set tyro's help of the fields of a dataclass and of nested dataclasses, in paragraphs.

    Args:
        kind: The dataclass, or an instance; the metadata of the fields of its class are changed.
    """
    of_class = kind if isinstance(kind, type) else type(kind)
    hints = get_type_hints(of_class)
    for entry in fields(of_class):
        for base in of_class.__mro__[:-1]:
            if (text := _field_texts(base).get(entry.name)) is not None:
                entry.metadata = MappingProxyType({**entry.metadata, "help": paragraph(text)})
                break
        inner = getattr(kind, entry.name, None)
        for part in (hints[entry.name], *get_args(hints[entry.name]), inner):
            if is_dataclass(part):
                describe_fields(part)


@cache
def _field_texts(of_class: type) -> dict[str, str | None]:
    """Return the docstrings of the fields that a class defines; its source is parsed once."""
    import docstring_parser

    return {param.arg_name: param.description for param in docstring_parser.parse_from_object(of_class).params}


@contextmanager
def hidden_fields(default: Any, *, shown: Collection[str]) -> Iterator[None]:
    """Hide fields of nested dataclasses from tyro's help, for as long as the context lasts.

    Args:
        default: Instance of the dataclass.
        shown: Patterns of the fields that stay, by their names joined with dots, e.g. "data.ood" or "method.*.epochs".
            Fields of a field that is called "config" count as those of the dataclass itself.
    """
    annotations: list[tuple[type, dict[str, Any]]] = []

    def hide(part: Any, prefix: str) -> None:
        for entry in fields(part):
            path = f"{prefix}{entry.name}"
            inner = getattr(part, entry.name)
            if is_dataclass(inner) and not isinstance(inner, type):
                hide(inner, "" if path == "config" else f"{path}.")
            elif not any(fnmatch(path, pattern) for pattern in shown):
                owner = next(base for base in type(part).__mro__ if entry.name in get_annotations(base))
                hint = get_type_hints(owner, include_extras=True)[entry.name]
                annotations.append((owner, owner.__annotations__))
                owner.__annotations__ = {**owner.__annotations__, entry.name: Annotated[hint, tyro.conf.Suppress]}

    hide(default, "")
    try:
        yield
    finally:
        for owner, before in reversed(annotations):
            owner.__annotations__ = before


def in_terminal_width(parse: Callable[[], T]) -> T:
    """Call a parser, and wrap the help that it prints to the width of the terminal.

    Args:
        parse: Function that parses the command line; it prints help and raises SystemExit if help is requested.

    Returns:
        Result of `parse`.

    Raises:
        SystemExit: If `parse` does.
    """
    # In the encoding of the terminal, which decides whether frames are drawn.
    printed = io.TextIOWrapper(
        io.BytesIO(), encoding=getattr(sys.stdout, "encoding", None) or "utf-8", errors="replace"
    )
    try:
        with redirect_stdout(printed):
            return parse()
    finally:
        width = max(40, shutil.get_terminal_size().columns)
        printed.seek(0)
        for row in re.sub(r"\n{3,}", "\n\n", printed.read()).splitlines():
            line = _LONG_NUMBER.sub(r"\1", row).rstrip()
            if line.endswith("│"):
                line = line[:-1] + " " * (len(row) - len(line)) + "│"
            indent = re.match(r" *", line)[0]  # type: ignore[index]
            # Choices in braces contain no spaces; allow a break after their commas.
            spread = line.replace(",", ", ") if line.startswith("usage:") else line
            further = indent or "  " * line.startswith("usage:")
            wrapped = textwrap.wrap(
                spread, width, subsequent_indent=further, break_on_hyphens=False, break_long_words=False
            )
            print("\n".join(wrapped) if len(line) > width else line)
