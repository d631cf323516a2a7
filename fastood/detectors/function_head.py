"""Base class of detectors whose head may be any function of the features, such as pytorch-ood's `head`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from fastood.detectors.feature_extractor import FeatureExtractor, as_features, tensor_in
from fastood.detectors.head_detector import HeadDetector
from fastood.detectors.model_calls import Inputs, Model, call, unwrapped
from fastood.detectors.row_detector import RowDetector

__all__ = ["FunctionHeadDetector"]


class FunctionHeadDetector(HeadDetector):
    """Detector that needs the outputs of the head, but not its weights.

    With a head that is not an `nn.Linear` the features are the output of the model without pooling: maps
    `[N, C, H, W]` are flattened, modified or measured, and passed to the head in their original shape and dtype.

    Args:
        model: The network, or a function from inputs to the features that the head takes; None for `fit_features` and
            `predict_features` only.
        feature_layer: Name of the layer whose output is the features.
        head: An `nn.Linear`, another module or a function from features to logits `[N, K]`; None for the last
            `nn.Linear` of `model`.
    """

    def __init__(
        self,
        model: Model | None = None,
        feature_layer: str | None = None,
        *,
        head: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        head = None if head is None else unwrapped(head)
        self._function = None if isinstance(head, nn.Linear) else head
        self._shape: tuple[int, ...] | None = None
        self._dtype = torch.float32
        if head is None or isinstance(head, nn.Linear):
            super().__init__(model, feature_layer, head=head)
            return
        if not callable(head):
            raise TypeError(f"head must be an nn.Linear or another function of features, got {type(head).__name__}")
        if model is None and feature_layer is not None:
            raise ValueError(f"feature_layer needs a model, got {feature_layer!r} without one")
        self.head = head  # type: ignore[assignment]  # the overridden methods use no weights
        self._detector = None
        layers = None if feature_layer is None else [feature_layer]
        RowDetector.__init__(self, None if model is None else _Maps(FeatureExtractor(model, layers)))

    @torch.no_grad()
    def extract(self, x: Inputs) -> Tensor:
        """Return the flattened features `[N, d]` of inputs; errors are those of `RowDetector.extract`."""
        return self._flattened(super().extract(x))

    @torch.inference_mode(False)
    def fit_features(self, features: Tensor, labels: Tensor) -> Self:
        """Fit to features `[N, d]` or, with a function as head, features of the shape that it takes."""
        return super().fit_features(self._flattened(features), labels)

    def predict_features(self, features: Tensor) -> Tensor:
        """Return scores float64 `[N]` of features `[N, d]` or, with a function as head, of the shape that it takes."""
        return super().predict_features(self._flattened(features))

    def _flattened(self, features: Tensor) -> Tensor:
        if self._function is None or not isinstance(features, Tensor) or features.dim() < 2:
            return features
        if features.is_nested or features.layout != torch.strided:
            return features
        self._dtype = features.dtype
        if features.dim() > 2 or self._shape is None or features.shape[1] != torch.Size(self._shape).numel():
            self._shape = tuple(features.shape[1:])
        return features.flatten(1)

    def _logits(self, features: Tensor) -> Tensor:
        if self._function is None:
            return super()._logits(features)
        assert self._shape is not None
        maps = features.to(self._dtype).reshape(-1, *self._shape)
        try:
            logits = call(self._function, maps)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"the head must take features of shape {tuple(maps.shape)}, but fails: {error}") from error
        return as_features(logits, "the head", pooled=False).double()

    def _head_tensors(self) -> dict[str, Tensor]:
        return super()._head_tensors() if self._function is None else {}

    def _width(self) -> int | None:  # type: ignore[override]
        return super()._width() if self._function is None else None

    def _width_to_fit(self) -> int | None:  # type: ignore[override]
        return super()._width_to_fit() if self._function is None else None

    def _home(self, rows: Tensor) -> torch.device:
        return super()._home(rows) if self._function is None else rows.device


class _Maps:
    """Function to the outputs of a model or layer, without pooling."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self._extractor = extractor

    def __call__(self, x: Inputs) -> Tensor:
        return tensor_in(self._extractor.outputs(x)[0], "the model", "pooler_output")
