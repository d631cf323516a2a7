"""Training methods: stages that one loop runs, and arms that are judged.

A new method is one file here: a config dataclass derived from `MethodConfig`, whose `build` makes the method. Every
module of this folder is found; `METHODS` has the configs by name.
"""

from importlib import import_module
from pkgutil import iter_modules

from fastood.train.methods.config import MethodConfig, Preset, PresetName

METHODS: dict[str, type[MethodConfig]] = {}
"""Config of every method by the name that the command line takes."""

for _module in iter_modules(__path__):
    for _found in vars(import_module(f"{__name__}.{_module.name}")).values():
        if isinstance(_found, type) and issubclass(_found, MethodConfig) and "name" in vars(_found):
            METHODS[_found.name] = _found

__all__ = ["METHODS", "MethodConfig", "Preset", "PresetName"]
