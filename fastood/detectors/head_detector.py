"""What detectors share that apply the model's linear head to features that they have changed or measured."""

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
    """A detector of penultimate features that knows the head.

    Args:
        model: The network, or what maps inputs to features; None for `fit_features` and `predict_features` alone.
            Also by pytorch-ood's names: a detector takes the arguments of its class of the same name, in their order.
        feature_layer: As `LinearHeadModel` takes it; by default features are what the head is given.
        head: The layer from features to logits; None for the last `nn.Linear` of `model`.

    Raises:
        TypeError: `head` is no `nn.Linear`.
        ValueError: There is neither model nor head, or the model has no head to be found.
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
        """Write settings, what was fitted and the head as one safetensors file, whole or not at all.

        Raises:
            RuntimeError: Nothing has been fitted.
            ValueError: It scores logits by a function of the caller's.
        """
        self._require_fit()
        if self._detector is not None:
            raise ValueError("detector is a function, which a file cannot hold: save a detector without one")
        write_detector(path, {**self._state, **self._head_tensors()}, self._metadata())

    @classmethod
    @torch.inference_mode(False)
    def load(cls, path: str | Path, *args: Any, **kwargs: Any) -> Self:
        """Read what `save` wrote; without model and head the head is that of the file.

        Args:
            path: The file.
            *args: `model` and `feature_layer`, as the constructor takes them; the layer is that of the file if none is
                named.
            **kwargs: `model`, `feature_layer` and `head` by name.

        Raises:
            ValueError: The file is of another detector, or the head given is not that of the file.
        """
        tensors, said = read_detector(path)
        cls._check_written_by(path, said)
        stored = {name: tensors.pop(name) for name in _HEAD if name in tensors}
        if not args and "model" not in kwargs and kwargs.get("head") is None:
            if not stored:
                raise ValueError(f"{path} was written with a function as the head, which it does not hold: pass head=")
            kwargs["head"] = head_of(stored[_HEAD[0]], stored.get(_HEAD[1]))
        made = cls(*args, **(with_stored_layer(said, args, kwargs) | said["settings"]))
        here = made._head_tensors()
        if here.keys() != stored.keys() or not all(torch.equal(here[name].cpu(), stored[name]) for name in stored):
            raise ValueError(f"{path} was written with another head than that of the model")
        device = next((tensor.device for tensor in here.values()), torch.device("cpu"))
        made._state = {name: tensor.to(device) for name, tensor in tensors.items()}
        return made

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
        """Logits float64 `[n, K]` of features float64 `[n, d]`."""
        return head_logits(self.head, features)

    def _of_logits(self, logits: Tensor) -> Tensor:
        """Scores float64 `[n]` of logits that were made of changed features: their energy, or what the caller wants."""
        if self._detector is None:
            return energy_score(logits)
        scores = self._detector(logits)
        if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1]:
            said = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"detector must map logits [N, K] to scores [N], a tensor, got {said}")
        return scores.double()


_HEAD = ("head.weight", "head.bias")
