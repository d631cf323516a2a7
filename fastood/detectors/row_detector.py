"""Base class of detectors of rows, which checks rows, processes them in chunks, and stores one state in one file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from fastood.detectors.base import NOT_FITTED, Detector
from fastood.detectors.batches import labelled_batches
from fastood.detectors.checks import check_rows, labels_on_device_of
from fastood.detectors.model_calls import Inputs
from fastood.detectors.storage import read_detector, with_stored_layer, write_detector
from fastood.ops._features import check_finite_rows

__all__ = ["CHUNK_ROWS", "Batches", "RowDetector", "State"]

CHUNK_ROWS = 1024
"""Rows fitted or scored at a time: 16 MiB in float64 with 2048 features."""

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""Function that iterates over the training rows at each call: float64 `[n, d]` and labels, all of at least 0."""
State = dict[str, Tensor]
"""Fitted tensors by name."""


class RowDetector(Detector):
    """Detector of rows, logits or features; subclasses implement `_score` and, if they have to be fitted, `_fitted`.

    Args:
        extract: Function from inputs to rows `[N, d]`; None for `fit_features` and `predict_features` only.

    Attributes:
        feature_layer: Name of the layer whose output is the features; None for the output of the model or the input of
            its head.
    """

    needs_fit = False
    settings: ClassVar[tuple[str, ...]] = ()
    """Names of the settings: keyword arguments of the constructor, and attributes."""
    two_passes: ClassVar[bool] = False
    """Whether fitting iterates over the data more than once."""

    def __init__(self, extract: Callable[[Inputs], Tensor] | None) -> None:
        self._extract = extract
        self.feature_layer: str | None = None
        self._state: State = {}

    def __repr__(self) -> str:
        """Return the settings."""
        settings = [f"{name}={getattr(self, name)!r}" for name in self.settings]
        return f"{type(self).__name__}({', '.join(settings)})"

    @torch.inference_mode(False)
    @torch.no_grad()
    def fit(self, loader: Iterable[Any]) -> Self:
        """Fit to batches `(inputs, labels, ...)`, replacing the previous fit; see `Detector.fit`."""
        if self.two_passes and isinstance(loader, Iterator):
            raise ValueError(
                f"loader must allow two passes, got the iterator {type(loader).__name__}: pass a list or DataLoader"
            )
        if self.needs_fit:
            self._take(self._fitted(lambda: self._rows((self.extract(x), y) for x, y in labelled_batches(loader))))
        return self

    @torch.inference_mode(False)
    @torch.no_grad()
    def fit_features(self, features: Tensor, labels: Tensor) -> Self:
        """Fit to logits or features `[N, d]`, as the detector `reads`, with labels `[N]`; see `Detector.fit`."""
        if self.needs_fit:
            self._take(self._fitted(lambda: self._rows([(features, labels)])))
        return self

    def predict(self, x: Inputs) -> Tensor:
        """Return scores float64 `[N]` of inputs, higher for out-of-distribution; see `Detector.predict`."""
        return self.predict_features(self.extract(x))

    @torch.no_grad()
    def predict_features(self, features: Tensor) -> Tensor:
        """Return scores float64 `[N]` of logits or features `[N, d]`; NaN for a row that holds NaN."""
        self._require_fit()
        check_rows(features, self._width(), self.reads)
        home, features = self._home(features), features.detach()
        if len(features) <= CHUNK_ROWS:  # most batches: avoids the overhead of split and cat
            return self._score_or_nan(features.to(home).double())
        return torch.cat([self._score_or_nan(rows.to(home).double()) for rows in torch.split(features, CHUNK_ROWS)])

    @torch.no_grad()
    def extract(self, x: Inputs) -> Tensor:
        """Return the logits or features of inputs, as the detector `reads`.

        Raises:
            ValueError: If there is no model, or its output has another shape.
        """
        if self._extract is None:
            raise ValueError("the detector has no model: pass one, or use fit_features and predict_features")
        return self._extract(x)

    def save(self, path: str | Path) -> None:
        """Write settings and fitted tensors, without the model, as one safetensors file; see `Detector.save`."""
        self._require_fit()
        write_detector(path, self._state, self._metadata())

    def _metadata(self) -> dict[str, Any]:
        """Return the metadata of a file: the detector, its settings and the layer."""
        settings = {name: getattr(self, name) for name in self.settings}
        return {"detector": type(self).__name__, "settings": settings, "feature_layer": self.feature_layer}

    @classmethod
    @torch.inference_mode(False)
    def load(cls, path: str | Path, *args: Any, **kwargs: Any) -> Self:
        """Read a file written by `save`; pass the model as to the constructor.

        The layer is read from the file, unless one is named.

        Raises:
            ValueError: If the file was written by another detector, or by none.
        """
        tensors, metadata = read_detector(path)
        cls._check_written_by(path, metadata)
        detector = cls(*args, **(with_stored_layer(metadata, args, kwargs) | metadata["settings"]))
        detector._state = tensors
        return detector

    @classmethod
    def _check_written_by(cls, path: str | Path, metadata: dict[str, Any]) -> None:
        if metadata.get("detector") != cls.__name__:
            raise ValueError(f"{path} holds no {cls.__name__} but a {metadata.get('detector', 'Mahalanobis detector')}")

    def _fitted(self, batches: Batches) -> State:
        """Return the state fitted to the training rows; an error leaves the previous state."""
        raise AssertionError("called only where needs_fit is true")

    @abstractmethod
    def _score(self, rows: Tensor) -> Tensor:
        """Return scores float64 `[n]` of one chunk of rows."""

    def _width(self) -> int | None:
        """Return the width that rows to score must have; None for any."""
        return None

    def _width_to_fit(self) -> int | None:
        """Return the width that rows to fit must have, independent of the previous fit; None for any."""
        return None

    def _home(self, rows: Tensor) -> torch.device:
        """Return the device on which rows are scored."""
        return next((tensor.device for tensor in self._state.values()), rows.device)

    def _score_or_nan(self, rows: Tensor) -> Tensor:
        return self._score(rows).masked_fill(rows.isnan().any(1), torch.nan)

    def _take(self, state: State) -> None:
        self._state = state

    def _require_fit(self) -> None:
        if self.needs_fit and not self._state:
            raise RuntimeError(NOT_FITTED)

    @torch.no_grad()
    def _rows(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield in-distribution rows in float64 and their labels by chunks."""
        count = 0
        width = self._width_to_fit()
        for rows, labels in batches:
            check_rows(rows, width, self.reads)
            width = rows.shape[1]
            labels = labels_on_device_of(labels, rows)
            check_finite_rows(rows, labels >= 0)
            for some, of_some in zip(
                torch.split(rows.detach(), CHUNK_ROWS), torch.split(labels, CHUNK_ROWS), strict=True
            ):
                is_labelled = of_some >= 0
                count += int(is_labelled.sum())
                home = self._home(some)
                # float64: fits sum over all training rows, and squares of a common offset lose digits in float32.
                yield some[is_labelled].to(home).double(), of_some[is_labelled].to(home)
        if count == 0:
            raise ValueError("there must be at least one row with a label of 0 or above to fit to, got none")
