"""Suite of detectors on one model that share one forward pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from fastood.detectors.base import NOT_FITTED, Detector
from fastood.detectors.batches import labelled_batches
from fastood.detectors.checks import check_rows, labels_on_device_of
from fastood.detectors.linear_head import SplitModel
from fastood.detectors.mahalanobis import MahalanobisDetector
from fastood.detectors.model_calls import Inputs
from fastood.detectors.odin import ODIN
from fastood.detectors.perturbation import gradients, leaf

__all__ = ["DetectorSuite"]


class DetectorSuite:
    """Suite that fits and scores several detectors on the features and logits of one forward pass.

    Each `ODIN` among them, whose step needs gradients, adds a backward pass and one more forward pass. Detectors read
    logits or penultimate features; their own models are not called.

    A detector that fails (ViM on fewer rows than features, ODIN on token ids) is left out with a warning until the next
    fit, and the others continue. Errors of the data or the model, which concern every detector, are raised.

    Args:
        model: The network, split at its linear head.
        detectors: Detectors by name, from `build_detectors` or your own.

    Attributes:
        detectors: Detectors by name.
        failed: Errors of the detectors left out since the last fit, by name.

    Raises:
        ValueError: If there is no detector, or a detector other than `ODIN` perturbs or reads inputs.

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
                raise ValueError(f"detectors other than ODIN must not perturb inputs; {name!r} has an epsilon above 0")
        self.model = model
        self.detectors = dict(detectors)
        self.failed: dict[str, Exception] = {}
        self._widths: dict[str, int] = {}

    @torch.inference_mode(False)
    def fit(self, loader: Iterable[Any]) -> Self:
        """Fit all detectors to batches, by one pass of the network; see `Detector.fit` for batches.

        Features and logits `[N, d + K]` are kept in float32 until the detectors are fitted.

        Raises:
            TypeError, ValueError: If a batch has no labels, or the model returns no features and logits for it.
            ExceptionGroup: If every detector failed; a suite of one detector raises that detector's error.
        """
        collected: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            for x, labels in labelled_batches(loader):
                features, logits = self.model(x)
                collected.append((features.float(), logits.float(), labels_on_device_of(labels, features)))
        if not collected:
            raise ValueError("there must be at least one batch to fit to, got none")
        features, logits, labels = (torch.cat(parts) for parts in zip(*collected, strict=True))
        return self.fit_outputs(features, logits, labels)

    def fit_outputs(self, features: Tensor, logits: Tensor, labels: Tensor) -> Self:
        """Fit all detectors to penultimate features `[N, d]` and logits `[N, K]`, with labels int64 `[N]`.

        A detector that fails is left out with a warning, and `failed` holds its error.

        Raises:
            TypeError, ValueError: If a tensor has another shape or dtype, or no label is 0 or above.
            ExceptionGroup: If every detector failed; a suite of one detector raises that detector's error.
        """
        check_rows(features)
        check_rows(logits, name="logits")
        labels = labels_on_device_of(labels, features)
        labels_on_device_of(labels, logits)
        if not bool((labels >= 0).any()):
            raise ValueError("there must be at least one row with a label of 0 or above to fit to, got none")
        self.failed = {}
        reading = {"features": features, "logits": logits}
        self._widths = {name: rows.shape[1] for name, rows in reading.items()}
        for name, detector in self.detectors.items():
            if detector.needs_fit:
                try:
                    detector.fit_features(reading[detector.reads], labels)
                except Exception as error:
                    self._leave_out(name, error)
        self._require_one()
        return self

    def predict(self, x: Inputs) -> dict[str, Tensor]:
        """Return scores float64 `[N]` of inputs by name, of all detectors that have not `failed`.

        Raises:
            TypeError, ValueError: If `Detector.predict` raises it.
            RuntimeError: If a detector has not been fitted.
            ExceptionGroup: If every detector has failed; a suite of one detector raises that detector's error.
        """
        features, logits, of_moved = self.forward(x)
        scores = self.predict_outputs(features, logits) | of_moved
        self._require_one()
        return {name: scores[name] for name in self.detectors if name in scores}

    def forward(self, x: Inputs) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return features, logits, and the scores of detectors that perturb inputs, which need the network."""
        stepping = {name: detector for name, detector in self._working().items() if isinstance(detector, ODIN)}
        start = self._leaf(x, stepping) if stepping else None
        if start is None:
            with torch.no_grad():
                return *self.model(x), {}
        scores = {}
        try:
            with gradients():
                features, logits = self.model(start.clone())
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # If the model itself fails, this raises again; otherwise only its gradients fail, and ODIN is left out.
            with torch.no_grad():
                features, logits = self.model(x)
            for name in stepping:
                self._leave_out(name, error)
            return features, logits, {}
        for name, detector in stepping.items():
            with self._leaving_out(name):
                with gradients():
                    moved = detector.moved(start, logits)
                with torch.no_grad():
                    scores[name] = detector.score_logits(self.model(moved)[1])
        return features.detach(), logits.detach(), scores

    def predict_outputs(self, features: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Return scores of features and logits by name, for detectors that perturb no inputs and have not `failed`.

        Raises:
            TypeError, ValueError: If a tensor is not `[N, d]` or `[N, K]`, or its width differs from that of the fitted
                rows.
            RuntimeError: If a detector has not been fitted.
        """
        check_rows(features, self._widths.get("features"))
        check_rows(logits, self._widths.get("logits"), "logits")
        reading = {"features": features, "logits": logits}
        scores = {}
        for name, detector in self._working().items():
            if detector.reads != "inputs":
                with self._leaving_out(name):
                    scores[name] = _checked(detector.predict_features(reading[detector.reads]), len(features))
        return scores

    def _working(self) -> dict[str, Detector]:
        return {name: detector for name, detector in self.detectors.items() if name not in self.failed}

    def _require_one(self) -> None:
        """Raise if every detector has failed: the error of the only detector, or the group of all errors."""
        if self._working():
            return
        errors = [self.failed[name] for name in self.detectors]
        if len(errors) == 1:
            raise errors[0]
        raise ExceptionGroup(f"all detectors of the suite failed ({', '.join(self.detectors)})", errors)

    def _leaf(self, x: Inputs, stepping: Mapping[str, Detector]) -> Tensor | None:
        """Return the inputs as a leaf that requires gradients; leave `stepping` out and return None if they cannot."""
        try:
            with torch.inference_mode(False):
                return leaf(x)
        except TypeError as error:
            for name in stepping:
                self._leave_out(name, error)
            return None

    @contextmanager
    def _leaving_out(self, name: str) -> Iterator[None]:
        """Leave out a detector that fails to score; errors of memory and of missing fits are raised."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            error.add_note(f"in detector {name!r} of the suite")
            raise
        except Exception as error:
            if str(error) == NOT_FITTED:
                raise RuntimeError(f"{name}: {error}") from error
            self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        self.failed[name] = error
        warnings.warn(f"detector {name!r} is left out: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=3)


def _checked(scores: object, count: int) -> Tensor:
    """Return the scores of a detector; raise TypeError unless they are a floating-point tensor `[count]`."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.shape != (count,):
        kind = f"{scores.dtype} of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"predict_features must return floating-point scores [{count}], got {kind}")
    return scores
