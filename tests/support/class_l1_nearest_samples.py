"""One table of inputs for the nearest key of a class: every edge of the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.ops.class_l1_nearest import by_class


@dataclass(frozen=True)
class NearestSample:
    """Queries and keys with labels from -1 to `classes`, of which the last has no key."""

    queries: int
    keys: int
    dim: int
    classes: int = 3
    values: int = 0
    """How many values features have; few make ties. 0: they are normal."""
    strided: bool = False

    def __str__(self) -> str:
        flags = f"-{self.values}values" * (self.values > 0) + "-strided" * self.strided
        return f"{self.queries}x{self.keys}x{self.dim}-{self.classes}classes{flags}"

    def make(self, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """query, query_labels, keys and key_labels; keys of the dtype, queries of that of the computation."""
        generator = torch.Generator().manual_seed(self.queries + 10 * self.keys + 100 * self.dim)

        def rows(count: int, dtype: torch.dtype) -> Tensor:
            shape = (count, self.dim)
            if self.values:
                made = torch.randint(self.values, shape, generator=generator).to(dtype)
            else:
                made = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            if not self.strided:
                return made
            return torch.cat([made, torch.full_like(made, torch.nan)], 1)[:, : self.dim]

        query = rows(self.queries, torch.float64 if dtype == torch.float64 else torch.float32)
        keys = rows(self.keys, dtype)
        query_labels = torch.randint(-1, self.classes + 1, (self.queries,), generator=generator)
        key_labels = torch.randint(-1, self.classes, (self.keys,), generator=generator)
        return query.to(device), query_labels.to(device), keys.to(device), key_labels.to(device)


SAMPLES = [
    *(NearestSample(20, 70, dim) for dim in (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 511, 512, 513, 1024, 1030)),
    *(NearestSample(queries, 40, 20, 1) for queries in (1, 2, 3, 4, 5, 31, 32, 33, 67)),
    *(NearestSample(9, keys, 20, 1) for keys in (1, 2, 3, 4, 5, 6)),
    NearestSample(0, 5, 3),
    NearestSample(5, 0, 3),
    NearestSample(100, 50, 10, 40),
    NearestSample(50, 300, 4, 3, values=2),
    NearestSample(50, 300, 1, 2, values=3),
    NearestSample(20, 60, 40, strided=True),
    # Tiles with queries of one class and of many, classes with fewer keys than shares.
    *(
        NearestSample(queries, keys, dim, classes, values)
        for queries, keys, dim, classes in ((8, 4, 1, 1), (40, 100, 31, 4), (70, 20, 33, 30), (60, 3000, 33, 100))
        for values in (0, 2)
    ),
    # Enough for two threads: a cut through a group, and through the keys of a single one.
    NearestSample(70, 3000, 65, 2),
    NearestSample(3, 20_000, 130, 1, values=2),
]
SMALL_SAMPLES = [
    NearestSample(5, 12, 4),
    NearestSample(4, 9, 1, 1),
    NearestSample(6, 11, 3, strided=True),
    NearestSample(0, 4, 2),
    NearestSample(3, 0, 2),
]


def op_args(sample: NearestSample, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The arguments of the op: labels sorted, and their order."""
    query, query_labels, keys, key_labels = sample.make(device, dtype)
    return (query, *by_class(query_labels), keys, *by_class(key_labels))


def class_l1_nearest_calls(device: str) -> list[tuple[str, Callable[..., object], tuple[object, ...]]]:
    """Calls of the op, for opcheck: (name, op, args)."""
    op = torch.ops.fastood.class_l1_nearest.default
    return [
        ("class_l1_nearest", op, op_args(sample, device, dtype))
        for sample in SMALL_SAMPLES
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
    ]
