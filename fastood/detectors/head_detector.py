"""Base class of detectors that apply the model's linear head to features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastood.detectors.linear_head import LinearHeadModel, check_head, head_logits, head_of
from fastood.detectors.model_calls import Model
from fastood.detectors.row_detector import RowDetector
from fastood.detectors.storage import read_detector, with_stored_layer, write_detector
from fastood.scores import energy_score

__all__ = ["HeadDetector"]


class HeadDetector(RowDetector):
    """Detector of penultimate features that has access to the linear head.

    Subclasses also accept the arguments of the pytorch-ood class of the same name, in its order.

    Args:
        model: The network, or a function from inputs to features; None for `fit_features` and `predict_features` only.
        feature_layer: Name of the layer whose output is the features; None for the input of the head.
        head: The layer from features to logits; None for the last `nn.Linear` of `model`.

    Raises:
        TypeError: If `head` is not an `nn.Linear`.
        ValueError: If there is neither model nor head, or the model has no `nn.Linear`.
    """

    reads = "features"

    def __init__(
        self, model: Model | None = None, feature_layer: str | None = None, *, head: nn.Linear | None = None
    ) -> None:
        self._detector: Callable[[Tensor], Tensor] | None = None
        if model is None:
            if head is None:
                raise ValueError(
                    f"{type(self).__name__} needs the linear head: pass head=, or a model that ends in one"
                )
            if feature_layer is not None:
                raise ValueError(f"feature_layer needs a model, got {feature_layer!r} without one")
            self.head = check_head(head)
            super().__init__(None)
            return
        split = LinearHeadModel(model, feature_layer, head=head)
        self.head = split.head
        super().__init__(split.features)
        self.feature_layer = feature_layer

    def save(self, path: str | Path) -> None:
        """Write settings, fitted tensors and the head as one safetensors file, atomically.

        Raises:
            RuntimeError: If nothing has been fitted.
            ValueError: If the detector scores logits by a function passed as `detector`.
        """
        self._require_fit()
        if self._detector is not None:
            raise ValueError("detector is a function, which cannot be saved: save a detector with detector=None")
        write_detector(path, {**self._state, **self._head_tensors()}, self._metadata())

    @classmethod
    @torch.inference_mode(False)
    def load(cls, path: str | Path, *args: Any, **kwargs: Any) -> Self:
        """Read a file written by `save`; without model and head, the head is read from the file.

        Args:
            path: The file.
            *args: `model` and `feature_layer` of the constructor; the layer is read from the file if none is named.
            **kwargs: `model`, `feature_layer` and `head` by name.

        Raises:
            ValueError: If the file was written by another detector, or with another head.
        """
        tensors, metadata = read_detector(path)
        cls._check_written_by(path, metadata)
        stored = {name: tensors.pop(name) for name in _HEAD if name in tensors}
        if not args and "model" not in kwargs and kwargs.get("head") is None:
            if not stored:
                raise ValueError(
                    f"{path} was written with a function as the head, which a file cannot store: pass head="
                )
            kwargs["head"] = head_of(stored[_HEAD[0]], stored.get(_HEAD[1]))
        detector = cls(*args, **(with_stored_layer(metadata, args, kwargs) | metadata["settings"]))
        own = detector._head_tensors()
        if own.keys() != stored.keys() or not all(torch.equal(own[name].cpu(), stored[name]) for name in stored):
            raise ValueError(
                f"{path} was written with another head than the model's: pass the model that it was fitted on"
            )
        device = next((tensor.device for tensor in own.values()), torch.device("cpu"))
        detector._state = {name: tensor.to(device) for name, tensor in tensors.items()}
        return detector

    def _head_tensors(self) -> dict[str, Tensor]:
        tensors = zip(_HEAD, (self.head.weight, self.head.bias), strict=True)
        return {name: tensor.detach() for name, tensor in tensors if tensor is not None}

    def _width(self) -> int:
        return self.head.in_features

    def _width_to_fit(self) -> int:
        return self.head.in_features

    def _home(self, rows: Tensor) -> torch.device:
        return self.head.weight.device

    def _logits(self, features: Tensor) -> Tensor:
        """Return logits float64 `[n, K]` of features float64 `[n, d]`."""
        return head_logits(self.head, features)

    def _of_logits(self, logits: Tensor) -> Tensor:
        """Return scores float64 `[n]` of the logits of modified features: `detector(logits)`, or their energy."""
        if self._detector is None:
            return energy_score(logits)
        scores = self._detector(logits)
        if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1]:
            kind = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"detector must map logits [N, K] to a tensor of scores [N], got {kind}")
        return scores.double()


_HEAD = ("head.weight", "head.bias")
