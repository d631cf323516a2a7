"""Counts, means and sums of squares of labelled features, accumulated in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.distributed import check_alike, exchange
from fastood.common.extras import needed_for
from fastood.heads.covariance import CONSTANT_SPREAD, add_lower_product, resolution_of
from fastood.heads.statistics_checks import check_label_range, check_state
from fastood.ops._arguments import allocating, as_flag
from fastood.ops._features import check_features, check_finite_rows, check_labels, check_size

__all__ = ["CHUNK_ROWS", "ClassSums"]

CHUNK_ROWS = 1024
"""Rows that are converted to float64 at a time: 4 MiB of 512 features, enough for products at full speed."""


class ClassSums:
    """Base class of `GaussianStatistics`: accumulates rows; see there for arguments and attributes.

    The sums of squares are kept about the class means, in the lower triangle alone.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int | None = None,
        *,
        per_class: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        if num_classes is not None:
            num_classes = check_size("num_classes", num_classes, wanted="at least 1, or None to grow with the labels")
        self.num_features = num_features = check_size("num_features", num_features)
        self.per_class = as_flag("per_class", per_class)
        self.resolution = CONSTANT_SPREAD
        self._limit = num_classes
        classes = num_classes or 0
        with allocating(f"num_features {num_features}, num_classes {num_classes}"):
            self.counts = torch.zeros(classes, dtype=torch.int64, device=device)
            self.means = torch.zeros(classes, num_features, dtype=torch.float64, device=device)
            # Lower triangle alone: the sum over all classes, or each class's own.
            sums = classes if per_class else 1
            self._scatter = torch.zeros(sums, num_features, num_features, dtype=torch.float64, device=device)

    @property
    def num_classes(self) -> int:
        """K, so far where it grows."""
        return len(self.counts)

    @property
    def count(self) -> int:
        """Rows of all classes. Waits for the device."""
        return int(self.counts.sum())

    def __repr__(self) -> str:
        """The sizes, and how many rows there were."""
        kind = "per_class" if self.per_class else "tied"
        return f"GaussianStatistics({self.count} rows, d={self.num_features}, K={self.num_classes}, {kind})"

    def partial_fit(self, features: Tensor, labels: Tensor) -> Self:
        """Add rows.

        Args:
            features: `[N, d]`, any floating dtype, finite where the label is not below zero.
            labels: `[N]`, int64, on the device of `features`; below zero for rows to skip.

        Returns:
            Itself.

        Raises:
            TypeError: A tensor is of another dtype.
            ValueError: A shape, device or label does not fit, or a feature is NaN or infinite. Nothing has changed.
        """
        features, labels = self._checked(features, labels)
        if len(labels) == 0:
            return self
        self._grow(int(labels.max()) + 1)
        self.resolution = max(self.resolution, resolution_of(features.dtype))
        for rows, classes in zip(torch.split(features, CHUNK_ROWS), torch.split(labels, CHUNK_ROWS), strict=True):
            self._add(rows.to(self.means), classes.to(self.means.device))
        return self

    def merge(self, other: ClassSums) -> Self:
        """Add the rows that `other` has seen; it stays as it is. Merged with itself, one has every row twice.

        Raises:
            TypeError: `other` is no GaussianStatistics.
            ValueError: The widths or `per_class` differ, or `other` has more classes than this one takes.
        """
        if not isinstance(other, ClassSums):
            raise TypeError(f"other must be GaussianStatistics, got {type(other).__name__}")
        if (other.num_features, other.per_class) != (self.num_features, self.per_class):
            raise ValueError(f"other must have the width and the per_class of {self}, got {other}")
        if self._limit is not None and other.num_classes > self._limit:
            raise ValueError(f"other must have at most {self._limit} classes, got {other.num_classes}")
        self._grow(other.num_classes)
        self.resolution = max(self.resolution, other.resolution)
        present = other.counts.nonzero().flatten().to(self.means.device)
        if self.per_class:
            self._scatter[present] += other._scatter.to(self.means.device)[present]
        else:
            self._scatter += other._scatter.to(self.means.device)
        counts, means = other.counts.to(self.means.device)[present], other.means.to(self.means.device)[present]
        before, delta = self.counts[present], means - self.means[present]
        step = delta * (counts.double() / (before + counts))[:, None]
        self.means[present] += step
        self.counts[present] = before + counts
        self._add_products(delta * before[:, None], step, present)
        return self

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Self:
        """Add the rows that all processes of `group` have seen; afterwards each holds the same.

        Call it once, when every process has seen its share: a second call would count every row again. A process that
        has seen none adds nothing.

        Raises:
            RuntimeError: No process group has been set up.
            ValueError: The processes differ in width or `per_class`, one has more classes than another takes, or this
                process is not in `group`. All processes say so, and none has changed.
        """
        own = self.num_features, self.per_class, self.num_classes, self._limit, self.resolution
        told = exchange(own, group, device=self.means.device)
        check_alike("num_features", [width for width, *_ in told])
        check_alike("per_class", [per_class for _, per_class, *_ in told])
        classes = max(classes for _, _, classes, _, _ in told)
        for rank, (_, _, _, limit, _) in enumerate(told):
            if limit is not None and limit < classes:
                raise ValueError(
                    f"num_classes must be the same on every process, got {limit} on rank {rank} and labels up to "
                    f"{classes - 1} on another"
                )
        self._grow(classes)
        counts, sums = self.counts.clone(), self.means * self.counts[:, None]
        dist.all_reduce(counts, group=group)
        dist.all_reduce(sums, group=group)
        means = sums / counts.clamp_min(1)[:, None]
        # What this process adds to the sum of squares about the common means, beside what it had: where an exchange
        # fails, its own statistics are whole.
        total = self.from_state_dict(self.state_dict(), device=self.means.device)
        shift = (self.means - means) * self.counts.double().sqrt()[:, None]
        total._add_products(shift, shift, torch.arange(self.num_classes, device=self.means.device))
        dist.all_reduce(total._scatter, group=group)
        self.counts, self.means, self._scatter = counts, means, total._scatter
        # Of the coarsest rows, on every process: all factorise alike.
        self.resolution = max(resolution for *_, resolution in told)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """All there is, as tensors; not copied."""
        per_class, resolution = torch.tensor(self.per_class), torch.tensor(self.resolution, dtype=torch.float64)
        return {
            "counts": self.counts,
            "means": self.means,
            "scatter": self._scatter,
            "per_class": per_class,
            "resolution": resolution,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], *, device: torch.device | str | None = None) -> Self:
        """Statistics as they were when `state_dict` was called; from now on they grow with the labels.

        Raises:
            TypeError: A tensor is of another dtype, or none.
            ValueError: A tensor is missing, their shapes do not belong together, or they hold what no rows add up to: a
                count below 0, NaN or infinity, or a sum of squares below 0.
        """
        check_state(state)
        counts, means, scatter = state["counts"], state["means"], state["scatter"]
        made = cls(means.shape[1], per_class=bool(state["per_class"]), device=device)
        if "resolution" in state:
            made.resolution = float(state["resolution"])
        made.counts = counts.to(device, torch.int64, copy=True)
        made.means = means.to(device, torch.float64, copy=True)
        made._scatter = scatter.to(device, torch.float64, copy=True)
        return made

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        with needed_for("GaussianStatistics.save"):  # safetensors is no requirement of the statistics
            from fastood.common.files import save_tensors

            save_tensors(Path(path), self.state_dict())

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str | None = None) -> Self:
        """Read what `save` wrote; errors as in `from_state_dict`."""
        with needed_for("GaussianStatistics.load"):
            from safetensors.torch import load_file

        return cls.from_state_dict(load_file(path), device=device)

    def _checked(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that count, or an error."""
        check_features(features, self.num_features)
        check_labels(labels, features)
        features, kept = features.detach(), labels >= 0
        check_finite_rows(features, kept)
        if not bool(kept.all()):
            features, labels = features[kept], labels[kept]
        if len(labels) > 0:
            largest, rows = int(labels.max()), self.count + len(labels)
            check_label_range(largest, self._limit, rows=rows, known=self.num_classes, per_class=self.per_class)
        return features, labels

    def _grow(self, classes: int) -> None:
        """Make room for so many classes."""
        more = classes - self.num_classes
        if more <= 0:
            return
        self.counts = torch.cat([self.counts, self.counts.new_zeros(more)])
        self.means = torch.cat([self.means, self.means.new_zeros(more, self.num_features)])
        if self.per_class:
            shape = (more, self.num_features, self.num_features)
            self._scatter = torch.cat([self._scatter, self._scatter.new_zeros(shape)])

    def _add(self, rows: Tensor, classes: Tensor) -> None:
        """Merge a chunk: float64 rows and their classes."""
        present, where, counts = torch.unique(classes, return_inverse=True, return_counts=True)
        before = self.counts[present]
        # About the means so far, so that an offset is gone before anything is summed.
        rows = rows - self.means[classes]
        delta = rows.new_zeros(len(present), self.num_features).index_add_(0, where, rows) / counts[:, None]
        # The first rows of a class are taken about their own mean: it has no other yet.
        first = delta * (before == 0)[:, None]
        if bool((before == 0).any()):
            rows -= first[where]
        step = (delta - first) * (counts.double() / (before + counts))[:, None]
        self.means[present] += first + step
        self.counts[present] = before + counts
        self._add_products(rows, rows - step[where], classes)

    def _add_products(self, left: Tensor, right: Tensor, classes: Tensor) -> None:
        """Add `left^T right`, symmetric for each class, to the sum of squares that the class belongs to."""
        if not self.per_class:
            add_lower_product(self._scatter[0], left, right)
            return
        for index in torch.unique(classes).tolist():
            own = classes == index
            add_lower_product(self._scatter[index], left[own], right[own])
