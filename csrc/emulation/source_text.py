"""Helpers that read C++ as text: code without comments and literals, and pairs of brackets."""

from __future__ import annotations

import re

_NOT_CODE = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'", re.DOTALL)


class TranslationError(Exception):
    """A source has a form that the translator does not understand."""


def code_of(text: str) -> str:
    """Return the text with comments and literals replaced by as many blanks; line breaks stay."""
    return _NOT_CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def closing(code: str, start: int, brackets: str = "()") -> int:
    """Return the index after the bracket that closes the one at `start`.

    Raises:
        TranslationError: If the bracket is not closed.
    """
    depth = 0
    for i in range(start, len(code)):
        depth += (code[i] == brackets[0]) - (code[i] == brackets[1])
        if depth == 0:
            return i + 1
    raise TranslationError(f"a bracket is not closed: {code[start : start + 80]}")
