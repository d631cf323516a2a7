"""Length of an epoch of a batch sampler, in batches or in examples over all ranks."""

from __future__ import annotations

from collections.abc import Iterator

from fastood.ops._arguments import as_flag, shown
from fastood.samplers import pool_checks

__all__ = ["EpochLength"]


class EpochLength:
    """Number and sizes of the batches of an epoch, equal on all ranks.

    Args:
        batch_size: B >= 1, examples per batch and rank.
        num_batches: Length in batches; None if `num_samples` is given.
        num_samples: Length in examples over all ranks; None if `num_batches` is given.
        drop_last: Whether to leave out the last batch if it is shorter than B.

    Raises:
        TypeError: If `drop_last` is not a bool.
        ValueError: If a number is not an int or below 1, or not exactly one length is given.
    """

    def __init__(self, batch_size: int, num_batches: int | None, num_samples: int | None, drop_last: bool) -> None:
        if (num_batches is None) == (num_samples is None):
            raise ValueError(
                "num_batches or num_samples must be given, and not both, got "
                f"{shown(num_batches)} and {shown(num_samples)}"
            )
        self.batch_size = pool_checks.integer("batch_size", batch_size)
        self.num_batches = None if num_batches is None else pool_checks.integer("num_batches", num_batches)
        self.num_samples = None if num_samples is None else pool_checks.integer("num_samples", num_samples)
        self.drop_last = as_flag("drop_last", drop_last)

    def settings(self) -> dict[str, int | bool | None]:
        """Return the arguments by name."""
        names = ("batch_size", "num_batches", "num_samples", "drop_last")
        return {name: getattr(self, name) for name in names}

    def batches(self, ranks: int) -> int:
        """Return the number of batches of an epoch on each of `ranks` ranks."""
        if self.num_samples is None:
            return self.num_batches or 0
        whole = ranks * self.batch_size
        return self.num_samples // whole if self.drop_last else -(-self.num_samples // whole)

    def examples(self, ranks: int, *, batches: int = 0, examples: int = 0) -> int:
        """Return the number of examples over all ranks that are left in an epoch after these batches and examples."""
        if self.num_batches is not None:
            return max(self.num_batches - batches, 0) * self.batch_size * ranks
        left = max((self.num_samples or 0) - examples, 0)
        whole = ranks * self.batch_size
        return left // whole * whole if self.drop_last else -(-left // ranks) * ranks

    def sizes(self, ranks: int, *, batches: int = 0, examples: int = 0) -> Iterator[int]:
        """Yield the size, on each rank, of every batch that is left in an epoch after these batches and examples."""
        left = self.examples(ranks, batches=batches, examples=examples) // ranks
        for begin in range(0, left, self.batch_size):
            yield min(self.batch_size, left - begin)

    def check(self, ranks: int, *, drawable: int | None) -> None:
        """Raise ValueError if an epoch has no batch, or more examples than can be drawn.

        Args:
            ranks: Number of ranks.
            drawable: Largest number of examples that can be drawn without replacement; None with replacement.
        """
        if self.batches(ranks) == 0:
            raise ValueError(
                f"num_samples must be at least world_size * batch_size = {ranks * self.batch_size} when "
                f"drop_last=True, got {self.num_samples}"
            )
        if drawable is not None and self.examples(ranks) > drawable:
            name = "num_samples" if self.num_batches is None else "num_batches * batch_size"
            over = "" if ranks == 1 else f" over {ranks} ranks; drop_last=True leaves out an incomplete batch"
            raise ValueError(
                f"{name} must be at most the {drawable} examples with weight when replacement=False, got "
                f"{self.examples(ranks)}{over}"
            )
