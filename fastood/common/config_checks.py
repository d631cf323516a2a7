"""Checks of config fields. Errors name the field, the value and the requirement."""

import math
from collections.abc import Sequence
from reprlib import Repr
from typing import Any, get_args

__all__ = [
    "require_arm",
    "require_at_least_one",
    "require_choice",
    "require_positive",
    "require_weight",
    "shorten",
    "shown",
]


def shorten(text: str, limit: int = 200) -> str:
    """Return a text of at most `limit` characters, cut in the middle.

    Example:
        >>> shorten("0123456789", 5)
        '01…89'
    """
    if len(text) <= limit:
        return text
    return text[: limit // 2] + "…" + text[len(text) - (limit - 1 - limit // 2) :]


def shown(value: Any) -> str:
    """Return an abbreviated repr of a value from a config file, for errors.

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
    """Check that fields are values of a `Literal`, or non-empty tuples of distinct values of it.

    Args:
        config: The config.
        **kinds: The `Literal` of each field, by name of the field.

    Raises:
        ValueError: If a field is not.
    """
    for name, kind in kinds.items():
        value, choices = getattr(config, name), get_args(kind)
        if not isinstance(value, tuple):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")
            continue
        if not value:
            raise ValueError(f"{name} must name at least one of {', '.join(choices)}, got none")
        for item in value:
            if item not in choices:
                raise ValueError(f"{name} must be of {', '.join(choices)}, got {shown(item)}")
        if len(set(value)) < len(value):
            raise ValueError(f"{name} must differ, got {', '.join(value)}")


def require_at_least_one(config: object, *names: str) -> None:
    """Check that fields are at least 1.

    Raises:
        ValueError: If a field is not.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")


def require_weight(config: object, *names: str) -> None:
    """Check that fields are finite and at least 0.

    Raises:
        ValueError: If a field is not.
    """
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {getattr(config, name)}")


def require_positive(config: object, *names: str) -> None:
    """Check that fields are finite and above 0.

    Raises:
        ValueError: If a field is not.
    """
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be finite and above 0, got {getattr(config, name)}")


def require_arm(arm: str, known: Sequence[str]) -> None:
    """Check that an arm is one of the arms of a method.

    Raises:
        ValueError: If it is not.
    """
    if arm not in known:
        raise ValueError(f"arm must be one of {', '.join(known)}, got {shown(arm)}")
