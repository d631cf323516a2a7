"""The contract of every detector, that of pytorch-ood: fit to training data, then score; higher is more OOD."""

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
    """Scores inputs of a trained model, or what the model has made of them already.

    Labels below zero are out-of-distribution or background; `fit` skips them. Scores are float64 on the device of the
    model, or of what was fitted.

    Attributes:
        reads: What `fit_features` and `predict_features` take: the "logits" `[N, K]` of the model, its penultimate
            "features" `[N, d]`, or its "inputs".
        needs_fit: Whether there is anything to fit; if not, `fit` and `fit_features` change nothing.
    """

    reads: ClassVar[Reads]
    needs_fit: ClassVar[bool]

    def __call__(self, x: Inputs) -> Tensor:
        """`predict`."""
        return self.predict(x)

    @abstractmethod
    def fit(self, loader: Iterable[Any]) -> Self:
        """Fit to batches, instead of what was there.

        Args:
            loader: Of batches `(inputs, labels, ...)`, or of mappings that hold the model's keyword arguments and the
                labels, under "labels" or "label". Labels are int64 `[N]`.

        Raises:
            TypeError, ValueError: There is no model, or something does not fit; what was fitted before is then still
                there.
        """

    @abstractmethod
    def fit_features(self, features: Tensor, labels: Tensor) -> Self:
        """Fit to what the detector `reads`, with labels int64 `[N]`; as `fit` otherwise."""

    @abstractmethod
    def predict(self, x: Inputs) -> Tensor:
        """Scores float64 `[N]` of inputs, higher for out-of-distribution.

        Args:
            x: A tensor, or a mapping with the model's keyword arguments. Inside `torch.inference_mode()` the scores are
                those outside of it.

        Raises:
            TypeError, ValueError: There is no model, or it puts out what the detector cannot read.
            RuntimeError: Nothing has been fitted.
        """

    @abstractmethod
    def predict_features(self, features: Tensor) -> Tensor:
        """Scores float64 `[N]` of what the detector `reads`; as `predict` otherwise."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write settings and what was fitted, without the model, as one safetensors file, whole or not at all.

        Raises:
            RuntimeError: Nothing has been fitted.
        """
