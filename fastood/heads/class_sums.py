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
    """Counts, means and sums of squares about the means of K classes; base class of `GaussianStatistics`.

    `GaussianStatistics` documents arguments and attributes.
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
            # One matrix over all classes, or one for each. Only the lower triangle is valid.
            sums = classes if per_class else 1
            self._scatter = torch.zeros(sums, num_features, num_features, dtype=torch.float64, device=device)

    @property
    def num_classes(self) -> int:
        """Number of classes K; without a limit, the number so far."""
        return len(self.counts)

    @property
    def count(self) -> int:
        """Number of rows of all classes. Synchronises with the device."""
        return int(self.counts.sum())

    def __repr__(self) -> str:
        """Return the sizes and the number of rows."""
        kind = "per_class" if self.per_class else "tied"
        return f"GaussianStatistics({self.count} rows, d={self.num_features}, K={self.num_classes}, {kind})"

    def partial_fit(self, features: Tensor, labels: Tensor) -> Self:
        """Add labelled rows to the statistics.

        Args:
            features: `[N, d]`, float64, float32, bfloat16 or float16; finite in rows with a label of at least zero.
            labels: int64 `[N]`, on the device of `features`; below zero for rows to skip.

        Returns:
            This object.

        Raises:
            TypeError: If a tensor has another dtype.
            ValueError: If a shape, device or label does not fit, or a feature is NaN or infinite. The statistics are
                then unchanged.
        """
        features, labels, bound = self._checked(features, labels)
        if len(labels) == 0:
            return self
        self._grow(bound)
        self.resolution = max(self.resolution, resolution_of(features.dtype))
        for rows, classes in zip(torch.split(features, CHUNK_ROWS), torch.split(labels, CHUNK_ROWS), strict=True):
            self._add(rows.to(self.means), classes.to(self.means.device))
        return self

    def merge(self, other: ClassSums) -> Self:
        """Add the rows of other statistics, which stay unchanged.

        Args:
            other: Statistics of equal width and `per_class`. Passing this object itself counts every row twice.

        Returns:
            This object.

        Raises:
            TypeError: If `other` is not a GaussianStatistics.
            ValueError: If the widths or `per_class` differ, or `other` has more classes than the limit of this object.
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
        # Indexing copies, so that `other` may be this object. Classes without rows are left out: their step would be
        # 0 / 0.
        counts, means = other.counts.to(self.means.device)[present], other.means.to(self.means.device)[present]
        # Chan et al. 1983: the sums about both means, plus n n'/(n + n') δ δ^T for the distance δ of the means.
        before, delta = self.counts[present], means - self.means[present]
        step = delta * (counts.double() / (before + counts))[:, None]
        self.means[present] += step
        self.counts[present] = before + counts
        self._add_products(delta * before[:, None], step, present)
        return self

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Self:
        """Add the rows of all processes of a group; afterwards every process has the same statistics.

        Call it once, after every process has added its rows: a second call counts every row again. A process without
        rows only receives the statistics of the others.

        Args:
            group: Process group; None for the default group.

        Returns:
            This object.

        Raises:
            RuntimeError: If there is no process group.
            ValueError: If the processes differ in width or `per_class`, one has more classes than the limit of another,
                or this process is not in `group`. Raised on every process, and all statistics are then unchanged.
        """
        own = self.num_features, self.per_class, self.num_classes, self._limit, self.resolution
        every = exchange(own, group, device=self.means.device)
        check_alike("num_features", [width for width, *_ in every])
        check_alike("per_class", [per_class for _, per_class, *_ in every])
        classes = max(classes for _, _, classes, _, _ in every)
        for rank, (_, _, _, limit, _) in enumerate(every):
            if limit is not None and limit < classes:
                raise ValueError(
                    f"num_classes must be the same on every process, got {limit} on rank {rank} and labels up to "
                    f"{classes - 1} on another"
                )
        self._grow(classes)
        # Sums and not means are exchanged: a process without rows of a class then adds 0.
        counts, sums = self.counts.clone(), self.means * self.counts[:, None]
        dist.all_reduce(counts, group=group)
        dist.all_reduce(sums, group=group)
        means = sums / counts.clamp_min(1)[:, None]
        # Move the sums of squares of this process to the common means, in a copy: if the last exchange fails, the
        # statistics of this process are still consistent.
        total = self.from_state_dict(self.state_dict(), device=self.means.device)
        shift = (self.means - means) * self.counts.double().sqrt()[:, None]
        total._add_products(shift, shift, torch.arange(self.num_classes, device=self.means.device))
        dist.all_reduce(total._scatter, group=group)
        self.counts, self.means, self._scatter = counts, means, total._scatter
        # The coarsest resolution of all processes, so that all of them find the same features constant.
        self.resolution = max(resolution for *_, resolution in every)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that determine the statistics, not copied.

        Returns:
            `counts` int64 `[K]`, `means` float64 `[K, d]`, `scatter` float64 `[1 or K, d, d]`, of which only the lower
            triangle is valid, `per_class` bool `[]` and `resolution` float64 `[]`.
        """
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
        """Return statistics with a saved state; their number of classes grows with the labels.

        Args:
            state: Tensors that `state_dict` returned.
            device: Device of the statistics; None for the current default.

        Raises:
            TypeError: If a tensor has another dtype, or is not a tensor.
            ValueError: If a tensor is missing, the shapes do not fit together, or a value is impossible for sums over
                rows: a count below 0, NaN or infinity, or a sum of squares below 0.
        """
        check_state(state)
        counts, means, scatter = state["counts"], state["means"], state["scatter"]
        statistics = cls(means.shape[1], per_class=bool(state["per_class"]), device=device)
        if "resolution" in state:
            statistics.resolution = float(state["resolution"])
        statistics.counts = counts.to(device, torch.int64, copy=True)
        statistics.means = means.to(device, torch.float64, copy=True)
        statistics._scatter = scatter.to(device, torch.float64, copy=True)
        return statistics

    def save(self, path: str | Path) -> None:
        """Write the state to a safetensors file, atomically.

        Args:
            path: Path of the file; an existing one is replaced.

        Raises:
            MissingPackageError: If safetensors is not installed.
            OSError: If the folder cannot be written.
        """
        # Imported here: safetensors is needed for files alone.
        with needed_for("GaussianStatistics.save"):
            from fastood.common.files import save_tensors

            save_tensors(Path(path), self.state_dict())

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str | None = None) -> Self:
        """Return the statistics that `save` wrote.

        Args:
            path: Path of the file.
            device: Device of the statistics.

        Raises:
            MissingPackageError: If safetensors is not installed.
            TypeError: If a tensor has another dtype.
            ValueError: If the file does not hold valid statistics.
        """
        with needed_for("GaussianStatistics.load"):
            from safetensors.torch import load_file

        return cls.from_state_dict(load_file(path), device=device)

    def _checked(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return the detached rows with labels of at least zero, and a bound above the labels, or raise."""
        check_features(features, self.num_features)
        check_labels(labels, features)
        features, kept = features.detach(), labels >= 0
        check_finite_rows(features, kept)
        if not bool(kept.all()):
            features, labels = features[kept], labels[kept]
        if len(labels) == 0:
            return features, labels, 0
        largest, count = torch.stack([labels.max(), self.counts.sum().to(labels.device)]).tolist()
        rows = count + len(labels)
        check_label_range(largest, self._limit, rows=rows, classes=self.num_classes, per_class=self.per_class)
        return features, labels, largest + 1

    def _grow(self, classes: int) -> None:
        """Add zeros for classes up to this number."""
        more = classes - self.num_classes
        if more <= 0:
            return
        self.counts = torch.cat([self.counts, self.counts.new_zeros(more)])
        self.means = torch.cat([self.means, self.means.new_zeros(more, self.num_features)])
        if self.per_class:
            shape = (more, self.num_features, self.num_features)
            self._scatter = torch.cat([self._scatter, self._scatter.new_zeros(shape)])

    def _add(self, rows: Tensor, classes: Tensor) -> None:
        """Add a chunk of float64 rows `[n, d]` with their classes `[n]`, all of at least zero."""
        present, where, counts = torch.unique(classes, return_inverse=True, return_counts=True)
        before = self.counts[present]
        # Subtract the current means before anything is summed, so that a large common offset costs no digits.
        rows = rows - self.means[classes]
        delta = rows.new_zeros(len(present), self.num_features).index_add_(0, where, rows) / counts[:, None]
        # A class without rows has no mean to subtract yet: its first rows are taken about their own mean.
        first = delta * (before == 0)[:, None]
        # Without new classes a subtraction of zeros, which a device does rather than wait.
        if rows.device.type != "cpu" or bool((before == 0).any()):
            rows -= first[where]
        step = (delta - first) * (counts.double() / (before + counts))[:, None]
        self.means[present] += first + step
        self.counts[present] = before + counts
        self._add_products(rows, rows - step[where], classes)

    def _add_products(self, left: Tensor, right: Tensor, classes: Tensor) -> None:
        """Add `left^T right`, which must be symmetric for each class, to the sums of squares of the classes."""
        if not self.per_class:
            add_lower_product(self._scatter[0], left, right)
            return
        for index in torch.unique(classes).tolist():
            own = classes == index
            add_lower_product(self._scatter[index], left[own], right[own])
