"""Distance to the k-th nearest training feature (Sun et al. 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastood.detectors.feature_extractor import FeatureExtractor, Model
from fastood.detectors.row_detector import Batches, RowDetector, State

BANK_TILE = 8192
"""Training rows compared at a time: with a chunk of 1024 rows 32 MiB of products."""
SPARE = 8
"""Neighbours beyond k that are measured exactly: products in float32 may swap those that are about equally far."""
EXACT_NUMBERS = 1 << 22
"""Differences to candidates taken at a time: 32 MiB in float64."""


class KNN(RowDetector):
    """Distance of a feature to its k-th nearest training feature, both of length 1 (Sun et al. 2022, eq. 3).

    Training features are kept in float32. Candidates come from products of tiles, never rows by all training rows;
    their distances are taken in float64 from the differences. faiss, which the paper's code and OpenOOD use, gives
    squared distances; OpenOOD adds 1e-10 to the quotient instead of the length.

    Args:
        model: Maps inputs to features, or has a layer that does; None for `fit_features` and `predict_features` alone.
        feature_layer: Name of the layer whose output is the features; None for the output of `model`.
        k: Which neighbour, at least 1: in the paper 50 for CIFAR-10, 200 for CIFAR-100, 1000 for ImageNet.
        normalize: Divide features by their length; zeros stay zeros.

    Raises:
        ValueError: `k` is below 1.

    Example:
        >>> import torch
        >>> features, labels = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 0, 1])
        >>> detector = KNN(k=2, normalize=False).fit_features(features, labels)
        >>> detector.predict_features(torch.tensor([[0.0], [3.0]]))
        tensor([1., 2.], dtype=torch.float64)
    """

    reads = "features"
    needs_fit = True
    settings = ("k", "normalize")

    def __init__(
        self, model: Model | None = None, feature_layer: str | None = None, *, k: int = 50, normalize: bool = True
    ) -> None:
        if model is None and feature_layer is not None:
            raise ValueError(f"feature_layer needs a model, got {feature_layer!r} without one")
        layers = None if feature_layer is None else [feature_layer]
        super().__init__(None if model is None else FeatureExtractor(model, layers).single)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k
        self.normalize = normalize

    def _fitted(self, batches: Batches) -> State:
        bank = torch.cat([self._prepared(rows).float() for rows, _ in batches()])
        if len(bank) < self.k:
            raise ValueError(
                f"k must be at most the number of rows with a label of 0 or above, {len(bank)}, got {self.k}"
            )
        return {"bank": bank}

    def _score(self, rows: Tensor) -> Tensor:
        rows = self._prepared(rows)
        candidates = self._candidates(rows.float())
        at_once = max(1, EXACT_NUMBERS // (candidates.shape[1] * rows.shape[1]))
        parts = zip(torch.split(rows, at_once), torch.split(candidates, at_once), strict=True)
        return torch.cat([self._exact(some, of_some) for some, of_some in parts])

    def _candidates(self, rows: Tensor) -> Tensor:
        """Indices `[n, k + SPARE]` of the nearest training rows, as far as float32 tells them apart."""
        bank = self._state["bank"]
        wanted = min(self.k + SPARE, len(bank))
        nearest, index = rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
        for start in range(0, len(bank), BANK_TILE):
            tile = bank[start : start + BANK_TILE]
            # Squared distances less |row|², which is the same for all.
            distances = torch.addmm(tile.square().sum(1), rows, tile.mT, alpha=-2)
            found, at = distances.topk(min(wanted, len(tile)), largest=False)
            nearest, index = torch.cat([nearest, found], 1), torch.cat([index, at + start], 1)
            nearest, at = nearest.topk(min(wanted, nearest.shape[1]), largest=False)
            index = index.gather(1, at)
        return index

    def _exact(self, rows: Tensor, candidates: Tensor) -> Tensor:
        differences = rows[:, None] - self._state["bank"][candidates]
        return differences.square().sum(2).kthvalue(self.k).values.sqrt()

    def _prepared(self, rows: Tensor) -> Tensor:
        return F.normalize(rows) if self.normalize else rows

    def _width(self) -> int | None:
        return self._state["bank"].shape[1] if self._state else None
