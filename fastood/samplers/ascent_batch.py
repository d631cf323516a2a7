"""Batch of an ascent step, kept with the values that the op has checked until the status of the step is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fastood.common.transfer import to_device
from fastood.ops import background_pool as ops
from fastood.samplers.deferred import Origin

__all__ = ["ROW", "WHERE", "AscentBatch", "too_large"]

ROW = 6
"""Count of the numbers that a process of a sharded pool sends before a step; see `AscentBatch.summary`."""
WHERE: dict[Origin, str] = {
    "this": "",
    "earlier": "; this was the batch of an earlier call of ascend, which changed nothing",
    "replayed": "; this was the batch of a captured call of ascend, of which a replay changed nothing",
}
"""Ending of an error's message by the call that the error belongs to."""


def too_large(loss: str, lr: float) -> str:
    """Return the message of the error for a step that exceeds float32, with the largest loss and the step size."""
    return (
        f"per_sample_loss times lr, also divided by the pool's sums, must stay in float32's range, got up to "
        f"{loss} · {lr:g}: reduce lr"
    )


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
    sparse: bool
    """Whether the step is sparse."""
    begin: int = 0
    """Index of the first example of the slice, which the index is relative to."""
    versions: tuple[int, int] = field(init=False)
    """Counters of in-place changes of `index` and `loss` at the call."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", (_version(self.index), _version(self.loss)))

    @classmethod
    def of(
        cls, index: Tensor, per_sample_loss: Tensor, lr: float, like: Tensor, *, sparse: bool, begin: int = 0
    ) -> AscentBatch:
        """Return the batch on the device of `like`, with indices relative to `begin`."""
        index, loss = to_device(index, like.device), per_sample_loss.detach()
        return cls(index - begin if begin else index, to_device(loss, like.device, ops.LOSS_DTYPE), lr, sparse, begin)

    def summary(self, num_examples: int, importance: Callable[[Tensor], Tensor], *, drawn: Tensor | float) -> Tensor:
        """Return what the processes of a sharded pool exchange before a step, float64 `[ROW]`.

        Does not wait for a CUDA device.

        Args:
            num_examples: Number of examples of the slice.
            importance: Function that returns the importance, float64, of indices in the slice.
            drawn: Last number that this process has drawn, float64 `[1]`; a float on the CPU.

        Returns:
            1 if a value is out of range, or 0; `Σ_b r_b l_b`; B; the step size; 1 for a sparse step, or 0; the last
            number drawn.
        """
        count = float(len(self.index))
        if isinstance(drawn, float):
            bad, total = self._sum_on_host(num_examples, importance)
            return torch.from_numpy(np.array([bad, total, count, self.lr, self.sparse, drawn], dtype=np.float64))
        # The negated comparison also selects NaN.
        wrong = ~((self.loss >= 0) & (self.loss < torch.inf)) | (self.index < 0) | (self.index >= num_examples)
        # Clamped, because errors are raised after the exchange with the other processes.
        weighted = (importance(self.index.clamp(0, num_examples - 1)) * self.loss).sum()
        constants = [torch.full_like(weighted, number) for number in (count, self.lr, float(self.sparse))]
        return torch.cat([torch.stack([wrong.any().double(), weighted, *constants]), drawn])

    def _sum_on_host(self, num_examples: int, importance: Callable[[Tensor], Tensor]) -> tuple[bool, float]:
        """Return whether a value is out of range, and `Σ_b r_b l_b`. By NumPy: its calls are short."""
        loss = self.loss.numpy()
        if len(loss) == 0:
            return False, 0.0
        try:
            weighted = float((importance(self.index).numpy() * loss).sum())
        except RuntimeError:
            # The op of the CPU raises for an index out of range. A check before it would take as long as the op.
            if bool(((self.index < 0) | (self.index >= num_examples)).any()):
                return True, 0.0
            raise
        # The negated comparisons are also true of NaN; a sum that is not finite may be that of finite losses.
        if not loss.min() >= 0 or (not weighted < math.inf and not loss.max() < math.inf):
            return True, 0.0
        return False, weighted

    def largest_loss(self) -> float:
        """Return the largest loss of the batch; 0 if the batch is empty. Waits for the device."""
        return float(self.loss.max()) if self.loss.numel() else 0.0

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
            message = too_large(self._shown(self.loss, int(self.loss.argmax()), origin, digits="g"), self.lr)
        return ValueError(message + WHERE[origin])

    def _shown(self, tensor: Tensor, position: int, origin: Origin, *, digits: str = "") -> str:
        # The caller may have overwritten its tensors since: no value is better than a wrong one.
        if origin == "replayed" or _version(tensor) != self.versions[tensor is self.loss]:
            return "a value that has been overwritten since"
        value = tensor[position].item()
        return f"{value + self.begin if tensor is self.index else value:{digits}}"


def _version(tensor: Tensor) -> int:
    # Inference tensors do not count changes.
    return 0 if tensor.is_inference() else tensor._version
