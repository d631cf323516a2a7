"""Detectors by name, with the default settings of their papers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from fastood.detectors.activation import ASH, SCALE, ReAct
from fastood.detectors.base import Detector
from fastood.detectors.dice import DICE
from fastood.detectors.gradnorm import GradNorm
from fastood.detectors.head_detector import HeadDetector
from fastood.detectors.knn import KNN
from fastood.detectors.linear_head import SplitModel, check_head
from fastood.detectors.logits import GEN, EnergyBased, Entropy, KLMatching, MaxLogit, MaxSoftmax
from fastood.detectors.mahalanobis import MahalanobisDetector
from fastood.detectors.model_calls import Inputs
from fastood.detectors.odin import ODIN
from fastood.detectors.she import SHE
from fastood.detectors.vim import ViM
from fastood.ops._arguments import shown

__all__ = ["DETECTORS", "Build", "build", "build_detectors", "builder", "detector_names"]

Build = Callable[..., Detector]
"""Function from a `SplitModel` and keyword settings to a detector; raises if the model lacks what it needs."""
_FROM_MODEL = ("model", "feature_layer", "head")


def build(
    name: str, kind: type[Any], model: SplitModel, settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Detector:
    """Build a detector of a class on the part of the model that it reads.

    Args:
        name: Name of the detector for error messages.
        kind: Class of the detector.
        model: The network, split at its head.
        settings: Keyword arguments of the class.
        defaults: Keyword arguments of the class that `settings` overrides.

    Raises:
        TypeError: If the class needs a linear head, and the model has another.
        ValueError: If the class has no such setting, or the setting is out of range.
    """
    allowed = [setting for setting in inspect.signature(kind).parameters if setting not in _FROM_MODEL]
    unknown = [setting for setting in settings if setting not in allowed]
    if unknown:
        raise ValueError(
            f"settings of {name} must be among its arguments ({', '.join(allowed) or 'none'}), got {', '.join(unknown)}"
        )
    arguments = {**defaults, **settings}
    built: Detector
    if issubclass(kind, HeadDetector):
        built = kind(model.features, head=check_head(model.head), **arguments)
    elif kind.reads == "features":
        built = kind(model.features, **arguments)
    else:
        built = kind(functools.partial(_logits, model), **arguments)
    return built


def _logits(model: SplitModel, x: Inputs) -> Tensor:
    return model(x)[1]


def builder(name: str, kind: type[Any], **defaults: Any) -> Build:
    """Return a function that builds a detector of a class by `build`, with these defaults."""
    return lambda model, /, **settings: build(name, kind, model, settings, defaults)


# Features after a ReLU are often 0 for all images in some directions, which makes the covariance singular.
_SHRUNK = {"shrinkage": "oas"}

DETECTORS: Mapping[str, Build] = MappingProxyType(
    {
        "msp": builder("msp", MaxSoftmax),
        "max-logit": builder("max-logit", MaxLogit),
        "energy": builder("energy", EnergyBased),
        "entropy": builder("entropy", Entropy),
        "gen": builder("gen", GEN),
        "klm": builder("klm", KLMatching),
        "odin": builder("odin", ODIN),
        "mahalanobis": builder("mahalanobis", MahalanobisDetector, **_SHRUNK),
        "relative-mahalanobis": builder("relative-mahalanobis", MahalanobisDetector, relative=True, **_SHRUNK),
        "normalized-mahalanobis": builder("normalized-mahalanobis", MahalanobisDetector, normalize=True, **_SHRUNK),
        "knn": builder("knn", KNN),
        "vim": builder("vim", ViM),
        "react": builder("react", ReAct),
        "ash": builder("ash", ASH),
        "scale": builder("scale", SCALE),
        "dice": builder("dice", DICE),
        "she": builder("she", SHE),
        "gradnorm": builder("gradnorm", GradNorm),
    }
)
"""Functions that build the detectors with their defaults, by name, in the order of tables."""


def detector_names() -> tuple[str, ...]:
    """Return the names of all detectors.

    Example:
        >>> detector_names()[:6]
        ('msp', 'max-logit', 'energy', 'entropy', 'gen', 'klm')
    """
    return tuple(DETECTORS)


def build_detectors(
    model: SplitModel,
    names: Sequence[str] | None = None,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Detector]:
    """Build detectors by name, each of the same model.

    Args:
        model: The network, split at its head.
        names: Names of detectors, each once; None for all.
        settings: Keyword arguments of the detectors' classes by name; defaults apply to all others.

    Raises:
        TypeError: If a detector needs a linear head, and the model has another.
        ValueError: If `names` is empty, or holds an unknown or repeated name; if `settings` names a detector that is
            not built, or a setting is unknown or out of range.

    Example:
        >>> import torch
        >>> from fastood.detectors import LinearHeadModel
        >>> model = LinearHeadModel(torch.nn.Linear(4, 3))
        >>> build_detectors(model, ["knn", "ash"], settings={"ash": {"percentile": 0.65}})
        {'knn': KNN(k=50, normalize=True), 'ash': ASH(variant='s', percentile=0.65)}
    """
    names = detector_names() if names is None else names
    settings = {} if settings is None else settings
    _check_mapping("settings", settings)
    for name, of_one in settings.items():
        _check_mapping(f"settings of {name}", of_one)
    unknown = [name for name in names if name not in DETECTORS]
    if isinstance(names, str) or unknown or len(names) == 0 or len(set(names)) < len(names):
        given = repr(names) if isinstance(names, str) else list(names)
        raise ValueError(f"names must be one or more of {', '.join(DETECTORS)}, each once, got {given}")
    unused = [name for name in settings if name not in names]
    if unused:
        raise ValueError(f"settings must be of detectors to build ({', '.join(names)}), got {', '.join(unused)}")
    return {name: DETECTORS[name](model, **settings.get(name, {})) for name in names}


def _check_mapping(what: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} must be a mapping of names to values, got {shown(value)}")
