"""What a pool asks of its arguments: an error names the argument, what it got and what it wants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from typing import NoReturn

import torch
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.samplers.softplus import OMEGA_MAX


def check_options(num_examples: int, epsilon: float, momentum: float, initial_weight: float) -> None:
    """Raise ValueError unless a pool can be made of these."""
    if isinstance(num_examples, bool) or not isinstance(num_examples, int) or num_examples < 1:
        raise ValueError(f"num_examples must be an int >= 1, got {num_examples!r}")
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must be in [0, 1], got {epsilon}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    if not 1e-30 <= initial_weight <= OMEGA_MAX:
        raise ValueError(f"initial_weight must be in [1e-30, 1e6], got {initial_weight}")


def check_batch_size(batch_size: int) -> None:
    """Raise ValueError unless a batch can have this many examples."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an int >= 1, got {batch_size!r}")


def check_generator(generator: torch.Generator, device: torch.device) -> None:
    """Raise unless draws on this device can come from the generator."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != device.type:
        raise ValueError(f"generator must be on {device.type} like the pool, got {generator.device.type}")


def check_index(index: Tensor, *, empty: bool = False) -> None:
    """Raise unless `index` is int64 `[B]`; its values are for the op to check."""
    if not isinstance(index, Tensor):
        raise TypeError(f"index must be a torch.Tensor, got {type(index).__name__}")
    if index.dtype != torch.int64:
        raise TypeError(f"index must be int64, got {index.dtype}")
    if index.dim() != 1 or (index.numel() == 0 and not empty):
        raise ValueError(f"index must be [B] with B >= {0 if empty else 1}, got shape {tuple(index.shape)}")


def check_ascent(index: Tensor, per_sample_loss: Tensor, lr: float, mode: str, *, empty: bool = False) -> None:
    """Raise unless dtypes, shapes and options of a step are right; values are for the op to check."""
    check_index(index, empty=empty)
    if not isinstance(per_sample_loss, Tensor):
        raise TypeError(f"per_sample_loss must be a torch.Tensor, got {type(per_sample_loss).__name__}")
    if not per_sample_loss.is_floating_point():
        raise TypeError(f"per_sample_loss must be floating-point, got {per_sample_loss.dtype}")
    if per_sample_loss.shape != index.shape:
        raise ValueError(f"per_sample_loss must have shape {tuple(index.shape)}, got {tuple(per_sample_loss.shape)}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be finite and > 0, got {lr}")
    if mode not in ("exact", "sparse"):
        raise ValueError(f'mode must be "exact" or "sparse", got {mode!r}')


def raise_for_status(
    status: int, position: int, index: Tensor, per_sample_loss: Tensor, lr: float, num_examples: int
) -> NoReturn:
    """Say what the op found wrong in a batch."""
    if status == ops.BAD_INDEX:
        raise ValueError(f"index must be in 0 … {num_examples - 1}, got {int(index[position])} at position {position}")
    if status == ops.BAD_LOSS:
        raise ValueError(
            f"per_sample_loss must be finite and >= 0, got {float(per_sample_loss[position])} at position {position} "
            f"(example {int(index[position])})"
        )
    # Of a pool over several processes this one may have none.
    largest = float(per_sample_loss.max()) if per_sample_loss.numel() else 0.0
    raise ValueError(
        f"per_sample_loss times lr, and over the pool's sums, must stay in float32's range, "
        f"got up to {largest:g} · {lr:g}"
    )


def check_learns(epsilon: float) -> None:
    """Raise ValueError at ε = 1, where the loss of a batch does not depend on the weights."""
    if epsilon == 1:
        raise ValueError("ascend needs epsilon below 1: at 1 the weights are all in the draw and have no gradient")


def check_index_range(index: Tensor, num_examples: int, *, begin: int = 0) -> None:
    """Raise ValueError unless every index is in `0 … N - 1`, said of indices that count from `begin`. Waits."""
    if index.numel() == 0:
        return
    low, high = (int(value) for value in index.aminmax())
    if low < 0 or high >= num_examples:
        raise ValueError(
            f"index must be in {begin} … {begin + num_examples - 1}, got {begin + (low if low < 0 else high)}"
        )


def check_losses(index: Tensor, loss: Tensor) -> None:
    """Raise ValueError unless every loss is finite and >= 0. Waits for the device."""
    bad = ~((loss >= 0) & (loss < math.inf))
    if bool(bad.any()):
        raise_for_status(ops.BAD_LOSS, int(bad.nonzero()[0]), index, loss, 0.0, 0)


def check_weights(weights: Tensor) -> None:
    """Raise unless a pool can begin with these weights."""
    if not isinstance(weights, Tensor):
        raise TypeError(f"weights must be a torch.Tensor, got {type(weights).__name__}")
    if weights.dim() != 1 or weights.numel() == 0:
        raise ValueError(f"weights must be [N] with N >= 1, got shape {tuple(weights.shape)}")
    allowed = (weights == 0) | ((weights >= 1e-30) & (weights <= OMEGA_MAX))
    if not bool(allowed.all()):
        first = int((~allowed).nonzero()[0])
        raise ValueError(f"weights must each be 0 or in [1e-30, 1e6], got {float(weights[first])} at position {first}")


def check_state(state: Mapping[str, Tensor], num_examples: int) -> None:
    """Raise unless `state` holds what a pool of this size can load."""
    for name in ("omega", "velocity"):
        if name not in state:
            raise KeyError(f"state must hold 'omega' and 'velocity', got {sorted(state)}")
        tensor = state[name]
        if tensor.shape != (num_examples,) or tensor.dtype != torch.float32:
            raise ValueError(
                f"state[{name!r}] must be float32 of shape ({num_examples},), "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        low, high = (float(value) for value in tensor.aminmax())
        if math.isnan(low) or high == math.inf or (low == -math.inf and name == "velocity"):
            raise ValueError(f"state[{name!r}] must be finite, got NaN or infinity")
    scale = state.get("scale")
    if scale is not None and (scale.shape != (4,) or scale.dtype != torch.float64):
        raise ValueError(f"state['scale'] must be float64 of shape (4,), got {scale.dtype} of {tuple(scale.shape)}")


def check_scale(scale: Tensor, sums: Tensor) -> None:
    """Raise ValueError unless the quanta and the bound in `scale` are ones that these totals can have.

    Args:
        scale: The three quanta and the bound.
        sums: float64 `[3]`, of the masses, weights and squares.
    """
    quanta, bound = scale.tolist()[:3], float(scale[3])
    totals = sums.tolist()
    for quantum, total in zip(quanta, totals, strict=True):
        fits = 0 < quantum < math.inf and math.frexp(quantum)[0] == 0.5 and 2**45 <= total / quantum <= 2**53
        if not fits or not 0 <= bound < math.inf:
            raise ValueError(f"state['scale'] does not belong to these weights: got {scale.tolist()} for sums {totals}")


def check_file(path: str | PathLike[str], state: Mapping[str, Tensor], options: Mapping[str, str]) -> None:
    """Raise ValueError unless a file holds a pool and what it was made with."""
    try:
        if state["omega"].dim() != 1:
            raise ValueError("omega is not 1-D")
        check_state(state, state["omega"].numel())
        check_options(state["omega"].numel(), float(options["epsilon"]), float(options["momentum"]), 1.0)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a background pool: {error}") from error
