"""Interface of every detector: fit to training data, then score; a higher score is more out-of-distribution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from fastood.detectors.model_calls import Inputs

__all__ = ["NOT_FITTED", "Detector", "Reads"]

Reads = Literal["logits", "features", "inputs"]

NOT_FITTED = "the detector has not been fitted: call fit or fit_features first"


class Detector(ABC):
    """Detector that scores inputs of a trained model, or their logits or features.

    Labels below 0 are out-of-distribution or background; `fit` skips them. Scores are float64 on the device of the
    model or of the fitted tensors. Method names are those of pytorch-ood.

    Attributes:
        reads: Kind of rows that `fit_features` and `predict_features` take: the "logits" `[N, K]` of the model, its
            penultimate "features" `[N, d]`, or its "inputs".
        needs_fit: Whether the detector has to be fitted; if not, `fit` and `fit_features` change nothing.
    """

    reads: ClassVar[Reads]
    needs_fit: ClassVar[bool]

    def __call__(self, x: Inputs) -> Tensor:
        """Return `predict(x)`."""
        return self.predict(x)

    @abstractmethod
    def fit(self, loader: Iterable[Any]) -> Self:
        """Fit to batches, replacing the previous fit.

        Args:
            loader: Batches `(inputs, labels, ...)`, or mappings that hold the model's keyword arguments and the labels
                under "labels" or "label". Labels are int64 `[N]`.

        Raises:
            TypeError, ValueError: If there is no model, or a batch is invalid; the previous fit is then kept.
        """

    @abstractmethod
    def fit_features(self, features: Tensor, labels: Tensor) -> Self:
        """Fit to logits or features, as the detector `reads`, with labels int64 `[N]`; errors are those of `fit`."""

    @abstractmethod
    def predict(self, x: Inputs) -> Tensor:
        """Return the scores of inputs, float64 `[N]`; higher is more out-of-distribution.

        Args:
            x: A tensor, or a mapping with the model's keyword arguments. `torch.inference_mode()` does not change the
                scores.

        Raises:
            TypeError, ValueError: If there is no model, or its output is not what the detector `reads`.
            RuntimeError: If nothing has been fitted.
        """

    @abstractmethod
    def predict_features(self, features: Tensor) -> Tensor:
        """Return the scores of logits or features, float64 `[N]`; errors are those of `predict`."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write settings and fitted tensors, without the model, as one safetensors file, atomically.

        Raises:
            RuntimeError: If nothing has been fitted.
        """
