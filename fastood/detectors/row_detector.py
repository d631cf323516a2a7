"""What detectors of rows share: rows checked and taken a few at a time, one state, one file."""

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
"""Rows fitted or scored at a time: with 2048 features 16 MiB in float64."""

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""Goes through the training rows once more at each call: float64 `[n, d]` and their labels, none below zero."""
State = dict[str, Tensor]
"""What was fitted, by name."""


class RowDetector(Detector):
    """A detector of rows, logits or features, that implements `_score` and, if it has to be fitted, `_fitted`.

    Args:
        extract: Makes rows `[N, d]` of inputs; None for `fit_features` and `predict_features` alone.

    Attributes:
        feature_layer: Name of the layer that features are taken from; None for what the model puts out or gives its
            head.
    """

    needs_fit = False
    settings: ClassVar[tuple[str, ...]] = ()
    """Names of the settings: keyword arguments of the constructor, and attributes."""
    two_passes: ClassVar[bool] = False
    """Whether fitting goes through the data more than once."""

    def __init__(self, extract: Callable[[Inputs], Tensor] | None) -> None:
        self._extract = extract
        self.feature_layer: str | None = None
        self._state: State = {}

    def __repr__(self) -> str:
        """The settings."""
        said = [f"{name}={getattr(self, name)!r}" for name in self.settings]
        return f"{type(self).__name__}({', '.join(said)})"

    @torch.inference_mode(False)
    @torch.no_grad()
    def fit(self, loader: Iterable[Any]) -> Self:
        """Fit to batches `(inputs, labels, ...)`, instead of what was there; see `Detector.fit`."""
        if self.two_passes and isinstance(loader, Iterator):
            raise ValueError(f"loader must be one that can be gone through twice, got {type(loader).__name__}")
        if self.needs_fit:
            self._take(self._fitted(lambda: self._rows((self.extract(x), y) for x, y in labelled_batches(loader))))
        return self

    @torch.inference_mode(False)
    @torch.no_grad()
    def fit_features(self, features: Tensor, labels: Tensor) -> Self:
        """Fit to what the detector `reads`, `[N, d]`, with labels `[N]`; see `Detector.fit`."""
        if self.needs_fit:
            self._take(self._fitted(lambda: self._rows([(features, labels)])))
        return self

    def predict(self, x: Inputs) -> Tensor:
        """Scores float64 `[N]` of inputs, higher for out-of-distribution; see `Detector.predict`."""
        return self.predict_features(self.extract(x))

    @torch.no_grad()
    def predict_features(self, features: Tensor) -> Tensor:
        """Scores float64 `[N]` of what the detector `reads`; NaN for a row that holds NaN."""
        self._require_fit()
        check_rows(features, self._width(), self.reads)
        home, features = self._home(features), features.detach()
        if len(features) <= CHUNK_ROWS:  # as most batches are, of which some pass hardly anything else
            return self._score_or_nan(features.to(home).double())
        return torch.cat([self._score_or_nan(rows.to(home).double()) for rows in torch.split(features, CHUNK_ROWS)])

    @torch.no_grad()
    def extract(self, x: Inputs) -> Tensor:
        """What the detector `reads` of inputs.

        Raises:
            ValueError: There is no model, or it puts out something else.
        """
        if self._extract is None:
            raise ValueError("the detector has no model: use fit_features and predict_features, or pass one")
        return self._extract(x)

    def save(self, path: str | Path) -> None:
        """Write settings and what was fitted, without the model, as one safetensors file; see `Detector.save`."""
        self._require_fit()
        write_detector(path, self._state, self._metadata())

    def _metadata(self) -> dict[str, Any]:
        """Return the metadata of a file: the detector, its settings and the layer."""
        settings = {name: getattr(self, name) for name in self.settings}
        return {"detector": type(self).__name__, "settings": settings, "feature_layer": self.feature_layer}

    @classmethod
    @torch.inference_mode(False)
    def load(cls, path: str | Path, *args: Any, **kwargs: Any) -> Self:
        """Read what `save` wrote; the model, which is not in the file, is passed as to the constructor.

        Its layer is that of the file, unless another is named.

        Raises:
            ValueError: The file is of another detector, or of none.
        """
        tensors, said = read_detector(path)
        cls._check_written_by(path, said)
        made = cls(*args, **(with_stored_layer(said, args, kwargs) | said["settings"]))
        made._state = tensors
        return made

    @classmethod
    def _check_written_by(cls, path: str | Path, said: dict[str, Any]) -> None:
        if said.get("detector") != cls.__name__:
            raise ValueError(f"{path} holds no {cls.__name__} but a {said.get('detector', 'Mahalanobis detector')}")

    def _fitted(self, batches: Batches) -> State:
        """What the training rows say; an error changes nothing."""
        raise AssertionError("called only where needs_fit is true")

    @abstractmethod
    def _score(self, rows: Tensor) -> Tensor:
        """Scores `[n]` of a few rows in float64."""

    def _width(self) -> int | None:
        """Columns that rows to score must have; None where nothing says."""
        return None

    def _width_to_fit(self) -> int | None:
        """Columns that rows to fit to must have, whatever was fitted before; None where nothing says."""
        return None

    def _home(self, rows: Tensor) -> torch.device:
        """Where rows are scored."""
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
        """Known rows in float64, a few at a time, or an error."""
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
                known = of_some >= 0
                count += int(known.sum())
                home = self._home(some)
                yield some[known].to(home).double(), of_some[known].to(home)
        if count == 0:
            raise ValueError("there must be at least one row with a label of 0 or above to fit to, got none")
