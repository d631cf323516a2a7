"""All detectors by name, with the settings that their papers recommend where nothing is known of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from fastood.detectors.activation import ASH, SCALE, ReAct
from fastood.detectors.base import Detector
from fastood.detectors.dice import DICE
from fastood.detectors.gradnorm import GradNorm
from fastood.detectors.knn import KNN
from fastood.detectors.linear_head import SplitModel, check_head
from fastood.detectors.logits import GEN, EnergyBased, Entropy, KLMatching, MaxLogit, MaxSoftmax
from fastood.detectors.mahalanobis import MahalanobisDetector
from fastood.detectors.odin import ODIN
from fastood.detectors.she import SHE
from fastood.detectors.vim import ViM

Build = Callable[[SplitModel], Detector]
"""Makes a detector of a model; an error says that the model has not what it takes."""


def _of_logits(kind: type[MaxSoftmax | MaxLogit | EnergyBased | Entropy | GEN | KLMatching]) -> Build:
    return lambda model: kind(lambda x: model(x)[1])


def _of_head(kind: type[ReAct | ASH | SCALE | DICE | ViM | SHE | GradNorm]) -> Build:
    return lambda model: kind(model.features, head=check_head(model.head))


DETECTORS: Mapping[str, Build] = MappingProxyType(
    {
        "msp": _of_logits(MaxSoftmax),
        "max-logit": _of_logits(MaxLogit),
        "energy": _of_logits(EnergyBased),
        "entropy": _of_logits(Entropy),
        "gen": _of_logits(GEN),
        "klm": _of_logits(KLMatching),
        "odin": lambda model: ODIN(lambda x: model(x)[1]),
        # Features after a ReLU are often 0 throughout in some directions, where nothing but shrinkage helps.
        "mahalanobis": lambda model: MahalanobisDetector(model.features, shrinkage="oas"),
        "knn": lambda model: KNN(model.features),
        "vim": _of_head(ViM),
        "react": _of_head(ReAct),
        "ash": _of_head(ASH),
        "scale": _of_head(SCALE),
        "dice": _of_head(DICE),
        "she": _of_head(SHE),
        "gradnorm": _of_head(GradNorm),
    }
)
"""Name to how a detector is built with its defaults, in the order of tables."""


def detector_names() -> tuple[str, ...]:
    """The names of all detectors.

    Example:
        >>> detector_names()[:6]
        ('msp', 'max-logit', 'energy', 'entropy', 'gen', 'klm')
    """
    return tuple(DETECTORS)


def build_detectors(model: SplitModel, names: Sequence[str] | None = None) -> dict[str, Detector]:
    """Detectors by name, each of the same model.

    Args:
        model: The network, taken apart at its head.
        names: Which, each once; None for all.

    Raises:
        TypeError: A detector needs a linear head, and the model has another.
        ValueError: A name is unknown or there twice, or there is none.

    Example:
        >>> import torch
        >>> from fastood.detectors import LinearHeadModel
        >>> list(build_detectors(LinearHeadModel(torch.nn.Linear(4, 3)), ["knn", "msp"]))
        ['knn', 'msp']
    """
    names = detector_names() if names is None else names
    unknown = [name for name in names if name not in DETECTORS]
    if unknown or len(names) == 0 or len(set(names)) < len(names):
        raise ValueError(f"names must be one or more of {', '.join(DETECTORS)}, each once, got {list(names)}")
    return {name: DETECTORS[name](model) for name in names}
