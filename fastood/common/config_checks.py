"""Checks that configurations share; each error names the field, what it got and what it wants."""

import math
from collections.abc import Sequence
from reprlib import Repr
from typing import Any, get_args


def shorten(text: str, limit: int = 200) -> str:
    """Return a text of at most so many characters, cut in its middle.

    Example:
        >>> shorten("0123456789", 5)
        '01…89'
    """
    if len(text) <= limit:
        return text
    return text[: limit // 2] + "…" + text[len(text) - (limit - 1 - limit // 2) :]


def shown(value: Any) -> str:
    """Return the repr of a value from a file as errors show it: short, however much the value holds.

    Example:
        >>> shown("a third"), shown([[0] * 3] * 1000)
        ("'a third'", '[[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], …]')
    """
    brief = Repr()
    brief.maxstring = brief.maxother = brief.maxlong = 60
    brief.maxlevel = 3
    brief.fillvalue = "…"
    return brief.repr(value)


def require_choice(config: object, **kinds: Any) -> None:
    """Fields must be one of the values of a `Literal`, or tuples of them without repetition, not empty.

    Raises:
        ValueError: If one is not.
    """
    for name, kind in kinds.items():
        value, known = getattr(config, name), get_args(kind)
        if not isinstance(value, tuple):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {shown(value)}")
            continue
        if not value:
            raise ValueError(f"{name} must name at least one of {', '.join(known)}, got none")
        for item in value:
            if item not in known:
                raise ValueError(f"{name} must be of {', '.join(known)}, got {shown(item)}")
        if len(set(value)) < len(value):
            raise ValueError(f"{name} must differ, got {', '.join(value)}")


def require_at_least_one(config: object, *names: str) -> None:
    """Fields must be 1 or larger.

    Raises:
        ValueError: If one is not.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")


def require_weight(config: object, *names: str) -> None:
    """Fields must be finite and 0 or larger.

    Raises:
        ValueError: If one is not.
    """
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {getattr(config, name)}")


def require_positive(config: object, *names: str) -> None:
    """Fields must be finite and above 0.

    Raises:
        ValueError: If one is not.
    """
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be finite and above 0, got {getattr(config, name)}")


def require_arm(arm: str, known: Sequence[str]) -> None:
    """An arm's name must be one of the method's.

    Raises:
        ValueError: If it is not.
    """
    if arm not in known:
        raise ValueError(f"arm must be one of {', '.join(known)}, got {shown(arm)}")
