"""fastood: train classifiers that know what they do not know.

The drop-in layer needs no trainer: `fastood.losses`, `fastood.samplers`, `fastood.metrics`, and the typed ops under
them in `fastood.ops`. `python -m fastood.train` runs a whole method; `python -m fastood.evaluate` judges what it left.
"""

from importlib.metadata import PackageNotFoundError, version

from fastood import _startup  # noqa: F401 - before the imports that take seconds
from fastood._build import build_info

try:
    __version__ = version("fastood")
except PackageNotFoundError:  # imported from a source tree that was built in place
    __version__ = build_info()["version"]

__all__ = ["__version__", "build_info"]
