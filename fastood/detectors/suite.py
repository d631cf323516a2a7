"""Many detectors on one model: each input passes the network once for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from fastood.detectors.base import Detector
from fastood.detectors.linear_head import SplitModel
from fastood.detectors.mahalanobis import MahalanobisDetector
from fastood.detectors.odin import ODIN


class DetectorSuite:
    """Fits and scores with several detectors, which see what one forward pass puts out.

    With `ODIN` among them, whose step needs gradients, a backward pass and one more forward pass for each follow: its
    first forward pass is the common one. Detectors read logits or penultimate features; what they have as a model of
    their own is not called.

    Args:
        model: The network, taken apart at its linear head.
        detectors: By name, as `build_detectors` makes them or of your own.

    Raises:
        ValueError: There is no detector, or one perturbs or reads inputs without being an `ODIN`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fastood.detectors import LinearHeadModel, build_detectors
        >>> _ = torch.manual_seed(0)
        >>> model = LinearHeadModel(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
        >>> suite = DetectorSuite(model, build_detectors(model, ["msp", "react", "odin"]))
        >>> scores = suite.fit([(torch.randn(40, 6), torch.arange(40) % 3)]).predict(torch.randn(7, 6))
        >>> {name: score.shape for name, score in scores.items()}
        {'msp': torch.Size([7]), 'react': torch.Size([7]), 'odin': torch.Size([7])}
    """

    def __init__(self, model: SplitModel, detectors: Mapping[str, Detector]) -> None:
        if len(detectors) == 0:
            raise ValueError("detectors must hold at least one, got none")
        for name, detector in detectors.items():
            if detector.reads == "inputs" and not isinstance(detector, ODIN):
                raise ValueError(f"detectors must read logits or features, or be an ODIN; {name!r} reads inputs")
            if isinstance(detector, MahalanobisDetector) and detector.settings.epsilon > 0:
                raise ValueError(f"detectors must not perturb inputs, but for ODIN; {name!r} has an epsilon above 0")
        self.model = model
        self.detectors = dict(detectors)

    def fit(self, loader: Iterable[Any]) -> Self:
        """Fit all to batches `(inputs, labels, ...)` that pass the network once; errors as in `Detector.fit`.

        Features and logits are kept in float32 in the meantime, beside the model: N × (d + K).
        """
        collected: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            for x, labels, *_ in loader:
                features, logits = self.model(x)
                collected.append((features.float(), logits.float(), labels.to(features.device)))
        if not collected:
            raise ValueError("there must be at least one batch to fit to, got none")
        features, logits, labels = (torch.cat(parts) for parts in zip(*collected, strict=True))
        return self.fit_outputs(features, logits, labels)

    def fit_outputs(self, features: Tensor, logits: Tensor, labels: Tensor) -> Self:
        """Fit all to penultimate features `[N, d]` and logits `[N, K]`, with labels int64 `[N]`."""
        for detector in self.detectors.values():
            if detector.needs_fit:
                detector.fit_features(logits if detector.reads == "logits" else features, labels)
        return self

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Scores float64 `[N]` of inputs by name; errors as in `Detector.predict`."""
        features, logits, of_moved = self.forward(x)
        scores = self.predict_outputs(features, logits) | of_moved
        return {name: scores[name] for name in self.detectors}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Features, logits, and the scores of those that perturb inputs: all that takes the network."""
        stepping = {name: found for name, found in self.detectors.items() if isinstance(found, ODIN)}
        if not stepping:
            with torch.no_grad():
                return *self.model(x), {}
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            features, logits = self.model(x)
            moved = {name: found.moved(x, logits) for name, found in stepping.items()}
        with torch.no_grad():
            scores = {name: found.score_logits(self.model(moved[name])[1]) for name, found in stepping.items()}
        return features.detach(), logits.detach(), scores

    def predict_outputs(self, features: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Scores of penultimate features and logits, of all detectors but those that perturb inputs."""
        reading = {"features": features, "logits": logits}
        return {
            name: found.predict_features(reading[found.reads])
            for name, found in self.detectors.items()
            if found.reads != "inputs"
        }
