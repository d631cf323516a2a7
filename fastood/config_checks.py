"""Checks that configurations share; each error names the field, what it got and what it wants."""

import math
from collections.abc import Sequence
from typing import Any, get_args


def require_choice(config: object, **kinds: Any) -> None:
    """Fields must be one of the values of a `Literal`, or tuples of them without repetition, not empty.

    Raises:
        ValueError: If one is not.
    """
    for name, kind in kinds.items():
        value, known = getattr(config, name), get_args(kind)
        if not isinstance(value, tuple):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
            continue
        if not value:
            raise ValueError(f"{name} must name at least one of {', '.join(known)}, got none")
        for item in value:
            if item not in known:
                raise ValueError(f"{name} must be of {', '.join(known)}, got {item!r}")
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
        raise ValueError(f"arm must be one of {', '.join(known)}, got {arm!r}")
