"""Training methods: stages that one loop runs, and arms that are evaluated.

A new method is one file here: a config dataclass derived from `MethodConfig`, whose `build` makes a `Method`. Every
module of this folder is imported; `METHODS` holds the configs by name.
"""

from importlib import import_module
from pkgutil import iter_modules

from fastood.train.method import MethodConfig, Preset, PresetName

FIRST = ("resample", "reject", "bal", "ice")
"""Methods of the four papers, which help lists before the others."""


def _discover() -> dict[str, type[MethodConfig]]:
    """Return the config of every method in this folder by name, the papers' first, then alphabetically."""
    configs = {
        value.name: value
        for module in iter_modules(__path__)
        for value in vars(import_module(f"{__name__}.{module.name}")).values()
        if isinstance(value, type) and issubclass(value, MethodConfig) and "name" in vars(value)
    }
    others = sorted(configs.keys() - set(FIRST))
    return {name: configs[name] for name in (*FIRST, *others)}


METHODS = _discover()
"""Config of every method by the name that the command line takes."""

__all__ = ["METHODS", "MethodConfig", "Preset", "PresetName"]
