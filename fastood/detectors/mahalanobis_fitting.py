"""Fit of a Mahalanobis detector: its settings, and the statistics accumulated over batches of features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastood.detectors.checks import check_rows, labels_on_device_of
from fastood.detectors.gaussian_classes import FourthMoments, GaussianClasses
from fastood.detectors.perturbation import check_perturbation
from fastood.heads import GaussianStatistics
from fastood.heads.covariance import Shrinkage, check_shrinkage, resolution_of
from fastood.ops._arguments import as_flag
from fastood.ops._features import check_finite_rows

__all__ = ["CHUNK_ROWS", "Fitting", "MahalanobisSettings"]

CHUNK_ROWS = 1024
"""Rows scored or normalised at a time: 16 MiB in float64 with 2048 features."""


@dataclass(frozen=True, kw_only=True)
class MahalanobisSettings:
    """Settings of the fit and the score, described in `MahalanobisDetector`."""

    covariance: Literal["tied", "per_class"] = "tied"
    shrinkage: Shrinkage = None
    normalize: bool = False
    relative: bool = False
    epsilon: float = 0.0
    input_std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.covariance not in ("tied", "per_class"):
            raise ValueError(f'covariance must be "tied" or "per_class", got {self.covariance!r}')
        epsilon, input_std = check_perturbation(self.epsilon, self.input_std)
        taken: dict[str, Any] = {
            "shrinkage": check_shrinkage(self.shrinkage),
            "normalize": as_flag("normalize", self.normalize),
            "relative": as_flag("relative", self.relative),
            "epsilon": epsilon,
            "input_std": input_std,
        }
        for name, value in taken.items():
            object.__setattr__(self, name, value)  # frozen, and as plain numbers, which a file holds

    @property
    def two_passes(self) -> bool:
        """Whether fitting takes a second pass over the data."""
        return self.shrinkage == "ledoit_wolf"

    def check_passes(self, loader: Iterable[Any]) -> None:
        """Raise ValueError if fitting takes two passes and the loader is an iterator, which allows one."""
        # isinstance, not iter(): the latter would start a DataLoader's workers and advance its generator.
        if self.two_passes and isinstance(loader, Iterator):
            raise ValueError(
                f'loader must allow two passes for shrinkage="ledoit_wolf", got the iterator '
                f'{type(loader).__name__}; pass a list or DataLoader, or use "oas", which takes one pass'
            )

    def prepared(self, features: Tensor) -> Tensor:
        """Return rows in float64, divided by their length if `normalize` is set; differentiable."""
        features = features.double()
        return F.normalize(features) if self.normalize else features


class Fitting:
    """Accumulation of the statistics of one fit, separate from the detector until it is complete.

    Args:
        settings: Settings of the detector.
        statistics: Statistics to add to; None to start from the first rows.
    """

    def __init__(self, settings: MahalanobisSettings, statistics: GaussianStatistics | None = None) -> None:
        self.settings = settings
        self.statistics = statistics
        self.fourth: FourthMoments | None = None

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add rows `[N, d]` with labels `[N]`, skipping labels below 0; an error leaves the statistics unchanged."""
        check_rows(features, None if self.statistics is None else self.statistics.num_features)
        labels = labels_on_device_of(labels, features)
        check_finite_rows(features, labels >= 0)
        if self.statistics is None:
            per_class = self.settings.covariance == "per_class"
            self.statistics = GaussianStatistics(features.shape[1], per_class=per_class, device=features.device)
        for rows, of_rows in self._chunks(features, labels):
            self.statistics.partial_fit(rows, of_rows)
        # The rows were cast to float64, but keep the rounding of their own dtype.
        self.statistics.resolution = max(self.statistics.resolution, resolution_of(features.dtype))

    def add_again(self, features: Tensor, labels: Tensor) -> None:
        """Add rows in the second pass, which needs the means of the first."""
        assert self.statistics is not None
        for rows, of_rows in self._chunks(features, labels_on_device_of(labels, features)):
            within = self.statistics.fourth_moment(rows, of_rows)
            # Both moments in the one extra pass; the marginal one is read only for relative distances.
            marginal = self.statistics.fourth_moment(rows, of_rows, marginal=True)
            if self.fourth is not None:
                within, marginal = within + self.fourth.within, marginal + self.fourth.marginal
            self.fourth = FourthMoments(within=within, marginal=marginal)

    def classes(self) -> GaussianClasses:
        """Return the Gaussians, factorised from the statistics.

        Raises:
            ValueError: If there are no rows, or a covariance is singular.
        """
        if self.statistics is None:
            raise ValueError("there must be at least one batch to fit to, got none")
        return GaussianClasses.fit(
            self.statistics, shrinkage=self.settings.shrinkage, relative=self.settings.relative, fourth=self.fourth
        )

    def _chunks(self, features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Return prepared rows and labels by chunks, so that no float64 copy of all rows is made."""
        parts = zip(torch.split(features.detach(), CHUNK_ROWS), torch.split(labels, CHUNK_ROWS), strict=True)
        return ((self.settings.prepared(rows), of_rows) for rows, of_rows in parts)
