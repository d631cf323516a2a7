"""Lazy imports of the names of a package (PEP 562)."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["lazy_attributes"]


def lazy_attributes(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a package that imports names from submodules on first use.

    Args:
        package: Name of the package, `__name__`.
        modules: Names by the submodule that defines them, relative to the package.

    Example:
        >>> load = lazy_attributes("fastood.common", {"lazy": ["lazy_attributes"]})
        >>> load("lazy_attributes") is lazy_attributes
        True
        >>> load("nothing")
        Traceback (most recent call last):
            ...
        AttributeError: module 'fastood.common' has no attribute 'nothing'
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{module_of[name]}"), name)
        # Stored in the package, so that this function is not called for the name again.
        setattr(sys.modules[package], name, value)
        return value

    return load
