"""Bank of the features of training images, in memory or in a memory-mapped file."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fastood.heads import GaussianStatistics
from fastood.ops._features import check_features, check_finite_rows, check_labels

__all__ = ["CHUNK", "COARSE", "FeatureBank"]

COARSE = 0.01
"""Largest error of rounding to float32, as a fraction of a feature's standard deviation, without a warning."""
CHUNK = 8192
"""Rows read at a time: a bank in a file may be larger than memory."""


class FeatureBank:
    """Features of in-distribution images with their labels, the training data of the GAN.

    One row per image, from the frozen network in evaluation mode without augmentation: the boundary then encloses
    features like those that will be scored, and every image passes the network once. Rows with a label below 0
    (background) are left out.

    Args:
        features: `[N, d]`, any floating dtype, finite where the label is not below 0; kept as float32. A float32
            tensor, such as a memory-mapped one, is not copied if all labels are at least 0.
        labels: int64 `[N]` on the device of `features`.

    Attributes:
        features: float32 `[N, d]`.
        labels: int64 `[N]`, each at least 0.
        classes: int64 `[C]`, the labels that occur, ascending.
        mean, scale: float32 `[d]`, mean and standard deviation of every feature; a constant one has the scale 1.

    Raises:
        TypeError: If a tensor has another dtype.
        ValueError: If a shape is invalid, a feature is NaN or infinite, or no label is 0 or above.

    Example:
        >>> import torch
        >>> bank = FeatureBank(torch.tensor([[0.0, 3.0], [2.0, 3.0], [9.0, 9.0]]), torch.tensor([4, 1, -1]))
        >>> len(bank), bank.classes.tolist(), bank.mean.tolist(), bank.scale.tolist()
        (2, [1, 4], [1.0, 3.0], [1.0, 1.0])
    """

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        check_features(features)
        check_labels(labels, features)
        is_labelled = labels >= 0
        check_finite_rows(features, is_labelled)
        if not is_labelled.any():
            raise ValueError("there must be at least one row with a label of 0 or above, got none")
        if not is_labelled.all():
            features, labels = features[is_labelled], labels[is_labelled]
        features = _narrowed(features.detach())
        # Inference tensors cannot be part of a graph, which the generator's loss needs.
        self.features = features.clone() if features.is_inference() else features
        self.labels = labels
        self.classes: Tensor = torch.unique(labels)
        mean, scale = _moments(self.features)
        self.mean, self.scale = mean.float(), torch.where(scale > 0, scale, 1.0).float()

    @cached_property
    def statistics(self) -> GaussianStatistics:
        """Class means and covariance within classes, the initial statistics of every training on this bank."""
        statistics = GaussianStatistics(self.features.shape[1], device=self.features.device)
        for rows, labels in zip(torch.split(self.features, CHUNK), torch.split(self.labels, CHUNK), strict=True):
            statistics.partial_fit(rows, labels)
        return statistics

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        """Return the numbers of rows, features and classes."""
        rows, width = self.features.shape
        return f"FeatureBank({rows} rows of {width} features, {len(self.classes)} classes)"

    @classmethod
    def collect(cls, batches: Iterable[tuple[Tensor, Tensor]], file: Path | None = None) -> FeatureBank:
        """Collect batches of features and labels on the CPU.

        Args:
            batches: Features `[B, d]` and labels int64 `[B]`.
            file: File for the features as raw float32, which are then memory-mapped; it must exist as long as the bank.
                None for memory.

        Raises:
            TypeError, ValueError: If `FeatureBank` raises it, there is no batch, or batches differ in width.
        """
        if file is None:
            gathered = [(_narrowed(features.detach()).cpu(), labels.cpu()) for features, labels in batches]
            if not gathered:
                raise ValueError("there must be at least one batch to collect, got none")
            return cls(torch.cat([rows for rows, _ in gathered]), torch.cat([of_rows for _, of_rows in gathered]))
        labels_of, width = [], 0
        with file.open("wb") as out:
            for features, labels in batches:
                check_features(features, width or None)
                check_labels(labels.to(features.device), features)
                width, is_labelled = features.shape[1], labels.cpu() >= 0
                # Background rows are not written: removing them later would read everything into memory.
                _narrowed(features[is_labelled.to(features.device)].detach()).cpu().numpy().tofile(out)
                labels_of.append(labels.cpu()[is_labelled])
        kept = torch.cat(labels_of) if labels_of else torch.empty(0, dtype=torch.int64)
        if len(kept) == 0:
            raise ValueError("there must be at least one row with a label of 0 or above, got none")
        mapped = torch.from_file(str(file), shared=True, size=len(kept) * width, dtype=torch.float32)
        return cls(mapped.view(-1, width), kept)

    def standardized(self, features: Tensor) -> Tensor:
        """Return features scaled to mean 0 and standard deviation 1 over the bank."""
        return (features - self.mean) / self.scale

    def to(self, device: torch.device) -> FeatureBank:
        """Return the bank on another device."""
        return self if self.features.device == device else FeatureBank(self.features.to(device), self.labels.to(device))


def _narrowed(features: Tensor) -> Tensor:
    """Return features in float32; warn if rounding changes float64 features by much of their deviation."""
    narrow = features.float()
    if features.dtype != torch.float64 or len(features) < 2 or torch.equal(narrow.double(), features):
        return narrow
    mean = features.mean(0)
    spread, lost = (features - mean).square().mean(0).sqrt(), (narrow.double() - features).abs().amax(0)
    # A feature with a deviation below 1e-13 of its mean is constant up to float64 rounding, and loses nothing.
    coarse = ((lost > COARSE * spread) & (spread > 1e-13 * mean.abs())).nonzero().flatten().tolist()
    if coarse:
        warnings.warn(
            f"FeatureBank keeps features in float32, which has too few digits for {len(coarse)} of {len(mean)} "
            f"features, the first is feature {coarse[0]} with a mean of {float(mean[coarse[0]]):.6g} and a deviation "
            f"of {float(spread[coarse[0]]):.3g}. Subtract a common offset from all features first",
            stacklevel=3,
        )
    return narrow


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every column in float64, by chunks of rows."""
    mean, squares = torch.zeros(2, features.shape[1], dtype=torch.float64, device=features.device)
    for chunk in torch.split(features, CHUNK):
        # float64: sums over a million rows lose digits in float32.
        mean += chunk.double().sum(0) / len(features)
    # A second pass about the mean: sums of squares minus squared sums would cancel for a large mean.
    for chunk in torch.split(features, CHUNK):
        squares += (chunk.double() - mean).square().sum(0)
    # Rounding gives a constant column a deviation of about 1e-16 of its value: a divisor that would amplify noise.
    scale = (squares / len(features)).sqrt()
    return mean, torch.where(scale > 1e-7 * mean.abs(), scale, 0.0)
