"""Batch of an ascent step, kept with the values that the op has checked until the status of the step is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.samplers.deferred import Origin, to_device

__all__ = ["AscentBatch"]

_WHERE: dict[Origin, str] = {
    "this": "",
    "earlier": "; this was the batch of an earlier call of ascend, which changed nothing",
    "replayed": "; this was the batch of a captured call of ascend, of which a replay changed nothing",
}


@dataclass(frozen=True)
class AscentBatch:
    """Batch of an ascent step, by reference, and the error for each status of the op.

    Values are converted once, so that the values in an error are those that the op has checked.
    """

    index: Tensor
    """int64 `[B]`, on the device of the pool."""
    loss: Tensor
    """float64 `[B]`, on the device of the pool."""
    lr: float
    """Step size."""
    begin: int = 0
    """Index of the first example of the slice, which the index is relative to."""
    versions: tuple[int, int] = field(init=False)
    """Counters of in-place changes of `index` and `loss` at the call."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", (_version(self.index), _version(self.loss)))

    @classmethod
    def of(cls, index: Tensor, per_sample_loss: Tensor, lr: float, like: Tensor) -> AscentBatch:
        """Return the batch on the device of `like`."""
        loss = per_sample_loss.detach()
        return cls(to_device(index, like.device), to_device(loss, like.device, ops.LOSS_DTYPE), lr)

    def shifted(self, begin: int) -> AscentBatch:
        """Return the batch of a slice, with indices relative to the first example of the slice."""
        return replace(self, index=self.index - begin, begin=self.begin + begin)

    def summary(self, num_examples: int, importance: Callable[[Tensor], Tensor], *, sparse: bool) -> Tensor:
        """Return whether a value is out of range, `Σ_b r_b l_b`, B, the step size and `sparse`, float64 `[5]`.

        Args:
            num_examples: Number of examples of the slice.
            importance: Function that returns the importance, float64, of indices in the slice.
            sparse: Whether the step is sparse.
        """
        wrong = (self.index < 0) | (self.index >= num_examples) | self._wrong_losses()
        # Clamped, because errors are raised after the exchange with the other processes.
        weighted = (importance(self.index.clamp(0, num_examples - 1)) * self.loss).sum()
        numbers = (float(len(self.index)), self.lr, float(sparse))
        constants = [torch.full_like(weighted, number) for number in numbers]
        return torch.stack([wrong.any().double(), weighted, *constants])

    def first_bad_loss(self) -> ValueError:
        """Return the error for the first loss that is out of range. Waits for the device."""
        return self.error(ops.BAD_LOSS, int(self._wrong_losses().nonzero()[0]), 0)

    def _wrong_losses(self) -> Tensor:
        # The negated comparison also selects NaN.
        return ~((self.loss >= 0) & (self.loss < torch.inf))

    def error(self, status: int, position: int, num_examples: int, origin: Origin = "this") -> ValueError:
        """Return the error for a status of the op `pool_ascend`. Reads the batch, which waits for the device.

        Args:
            status: One of the error codes of `fastood.ops.background_pool`.
            position: Position of the offending entry in the batch.
            num_examples: N.
            origin: Call that the status belongs to.
        """
        if status == ops.BAD_INDEX:
            got = self._shown(self.index, position, origin)
            limits = f"{self.begin} … {self.begin + num_examples - 1}"
            message = f"index must be in {limits}, got {got} at position {position}"
        elif status == ops.BAD_LOSS:
            got, example = self._shown(self.loss, position, origin), self._shown(self.index, position, origin)
            message = f"per_sample_loss must be finite and >= 0, got {got} at position {position} (example {example})"
        else:
            # In a sharded pool the batch of this process may be empty.
            largest = int(self.loss.argmax()) if self.loss.numel() else -1
            got = "0" if largest < 0 else self._shown(self.loss, largest, origin, digits="g")
            message = (
                f"per_sample_loss times lr, also divided by the pool's sums, must stay in float32's range, "
                f"got up to {got} · {self.lr:g}: reduce lr"
            )
        return ValueError(message + _WHERE[origin])

    def _shown(self, tensor: Tensor, position: int, origin: Origin, *, digits: str = "") -> str:
        # The caller may have overwritten its tensors since: no value is better than a wrong one.
        if origin == "replayed" or _version(tensor) != self.versions[tensor is self.loss]:
            return "a value that has been overwritten since"
        value = tensor[position].item()
        return f"{value + self.begin if tensor is self.index else value:{digits}}"


def _version(tensor: Tensor) -> int:
    # Inference tensors do not count changes.
    return 0 if tensor.is_inference() else tensor._version
