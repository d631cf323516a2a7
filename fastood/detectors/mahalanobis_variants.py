"""Mahalanobis detectors under pytorch-ood's names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastood.detectors.mahalanobis import MahalanobisDetector
from fastood.detectors.model_calls import Model
from fastood.detectors.multi_layer import MultiLayerMahalanobisDetector
from fastood.detectors.pytorch_ood_names import takes_pytorch_ood

__all__ = ["RMD", "Mahalanobis", "MahalanobisODIN", "MultiMahalanobis"]

Mahalanobis = MahalanobisDetector
"""pytorch-ood scores `1 / 2N` of this distance, N rows, and adds 1e-6 to the diagonal of the scatter matrix."""


class RMD(MahalanobisDetector):
    """`MahalanobisDetector` with `relative=True` (Ren et al. 2021, https://arxiv.org/abs/2106.09022).

    Args:
        model: The network, or a function from inputs to features; None for `fit_features` and `predict_features` only.
        feature_layer: Name of the layer whose output is the features; None for the output of `model`.
        relative: Whether to subtract the distance by mean and covariance of all rows.
        **settings: Keyword arguments of `MahalanobisDetector`.

    Example:
        >>> RMD(shrinkage="oas").settings.relative
        True
    """

    @takes_pytorch_ood()
    def __init__(
        self, model: Model | None = None, feature_layer: str | None = None, *, relative: bool = True, **settings: Any
    ) -> None:
        super().__init__(model, feature_layer, relative=relative, **settings)


class MahalanobisODIN(MahalanobisDetector):
    """`MahalanobisDetector` of inputs moved against the gradient of their score, by pytorch-ood's step.

    Args:
        model: The network, or a function from inputs to features; None for `fit_features` and `predict_features` only.
        feature_layer: Name of the layer whose output is the features; None for the output of `model`.
        epsilon: Step, in the units of the inputs before they were divided by `input_std`.
        **settings: Keyword arguments of `MahalanobisDetector`.

    Example:
        >>> MahalanobisODIN().settings.epsilon
        0.002
    """

    @takes_pytorch_ood("eps", "norm_std", eps="epsilon", norm_std="input_std")
    def __init__(
        self, model: Model | None = None, feature_layer: str | None = None, *, epsilon: float = 0.002, **settings: Any
    ) -> None:
        super().__init__(model, feature_layer, epsilon=epsilon, **settings)


class MultiMahalanobis(MultiLayerMahalanobisDetector):
    """`MultiLayerMahalanobisDetector` of the outputs of consecutive modules.

    Args:
        model: The modules, each of which takes the output of the previous one.
        alpha: Weight of each module; None for 1.
        **settings: Keyword arguments of `MultiLayerMahalanobisDetector`.

    Raises:
        TypeError: If `model` is not a sequence of modules.
        ValueError: If there is no module, or `alpha` has another length.

    Example:
        >>> from torch import nn
        >>> MultiMahalanobis([nn.Linear(4, 3), nn.ReLU()], [1.0, 0.5]).weights
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, model: Sequence[nn.Module], alpha: Sequence[float] | None = None, **settings: Any) -> None:
        chain = _chain(model)
        super().__init__(chain, [str(i) for i in range(len(chain))], **settings)
        if alpha is not None:
            if len(alpha) != len(chain):
                raise ValueError(f"alpha must have one weight for each of the {len(chain)} modules, got {len(alpha)}")
            self.weights = torch.tensor([float(weight) for weight in alpha], dtype=torch.float64)

    @classmethod
    def load(cls, path: str | Path, model: Sequence[nn.Module]) -> MultiLayerMahalanobisDetector:  # type: ignore[override]
        """Read a file written by `save`, which does not hold the modules."""
        return MultiLayerMahalanobisDetector.load(path, _chain(model))


def _chain(modules: Sequence[nn.Module]) -> nn.Sequential:
    """Return the modules as a sequence in which each has its own layer name, also one that occurs twice."""
    if not isinstance(modules, Sequence | nn.ModuleList | nn.Sequential):
        raise TypeError(f"model must be a sequence of modules, got {type(modules).__name__}")
    if len(modules) == 0:
        raise ValueError("model must hold at least one module, got none")
    wrong = [type(module).__name__ for module in modules if not isinstance(module, nn.Module)]
    if wrong:
        raise TypeError(f"model must be a sequence of modules, got one with {wrong[0]}")
    return nn.Sequential(*(nn.Sequential(module) for module in modules))
