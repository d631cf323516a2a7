"""Checks of the arguments of background pools. Errors name the argument, the value and the requirement."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from os import PathLike

import torch
from torch import Tensor

from fastood.ops import _arguments as arguments
from fastood.ops._arguments import as_integer, as_real, shown
from fastood.ops._arrays import Values, as_tensor
from fastood.ops._validation import check_tensor
from fastood.samplers.deferred import Origin
from fastood.samplers.softplus import OMEGA_MAX

__all__ = [
    "MAX_COUNT",
    "WEIGHT_MIN",
    "check_distinct",
    "check_excess",
    "check_file",
    "check_generator",
    "check_index",
    "check_learns",
    "check_scale",
    "check_settings",
    "check_state",
    "checked_ascent",
    "checked_options",
    "checked_rate",
    "checked_weights",
    "index_excess",
    "integer",
]

MAX_COUNT = 2**40
"""Upper limit for examples in a pool or batch and bins of a histogram: a thousand times the largest tested pool."""
WEIGHT_MIN = 1e-30
"""Smallest initial weight of a pool; learning may reduce weights further, down to `softplus(OMEGA_MIN)`."""


def integer(name: str, value: object, low: int = 1, high: int = MAX_COUNT, *, wanted: str = "") -> int:
    """Return an integer argument, of Python or NumPy, as an int in `low … high`.

    Args:
        name: Name of the argument, for the error.
        value: The argument.
        low: Smallest allowed value.
        high: Largest allowed value.
        wanted: Requirement as the error states it; by default "an int >= low".

    Raises:
        ValueError: If `value` is not an integer, or out of range.
    """
    if type(value) is int and low <= value <= high:
        return value
    try:
        return as_integer(name, value, low, high, wanted=wanted or f"an int >= {low}")
    except TypeError as error:
        raise ValueError(str(error)) from None
    except ValueError:
        if wanted or operator.index(value) < low:  # type: ignore[arg-type]
            raise
        raise ValueError(f"{name} must be at most {high}, got {shown(value)}") from None


def checked_options(
    num_examples: int, epsilon: float, momentum: float, initial_weight: float
) -> tuple[int, float, float, float]:
    """Return the settings of a pool as plain numbers, or raise.

    Raises:
        TypeError: If a setting is not a number.
        ValueError: If a setting is out of range, or `num_examples` is not an int.
    """
    num_examples = integer("num_examples", num_examples)
    epsilon, momentum = as_real("epsilon", epsilon), as_real("momentum", momentum)
    initial_weight = as_real("initial_weight", initial_weight)
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must be in [0, 1], got {epsilon}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    if not WEIGHT_MIN <= initial_weight <= OMEGA_MAX:
        raise ValueError(f"initial_weight must be in [1e-30, 1e6], got {initial_weight}")
    return num_examples, epsilon, momentum, initial_weight


def checked_rate(rate: float) -> float:
    """Return the rate γ of a selection as a float, or raise unless it is a number in (0, 1]."""
    number = as_real("rate", rate)
    if not 0 < number <= 1:
        raise ValueError(f"rate must be in (0, 1], got {shown(rate)}")
    return number


def check_generator(generator: torch.Generator, device: torch.device) -> None:
    """Raise unless `generator` is a `torch.Generator` on this type of device."""
    arguments.check_generator(generator, device, like=" like the pool")


def _check_tensor(name: str, tensor: object) -> None:
    """Raise TypeError unless `tensor` is a dense tensor that holds data."""
    if check_tensor(name, tensor).is_meta:
        raise TypeError(f"{name} must be a dense tensor that holds data, got one on the meta device")


def check_index(index: Tensor, *, empty: bool = False) -> None:
    """Raise unless `index` is int64 `[B]`. Does not read the values, which the op checks."""
    _check_tensor("index", index)
    if index.dtype != torch.int64:
        raise TypeError(f"index must be int64, got {index.dtype}")
    if index.dim() != 1 or (index.numel() == 0 and not empty):
        raise ValueError(f"index must be [B] with B >= {0 if empty else 1}, got shape {tuple(index.shape)}")


def checked_ascent(index: Tensor, per_sample_loss: Tensor, lr: float, mode: str, *, empty: bool = False) -> float:
    """Return `lr` as a float, or raise unless dtypes, shapes and options of a step fit. The op checks the values."""
    check_index(index, empty=empty)
    _check_tensor("per_sample_loss", per_sample_loss)
    if not per_sample_loss.is_floating_point():
        raise TypeError(f"per_sample_loss must be floating-point, got {per_sample_loss.dtype}")
    if per_sample_loss.shape != index.shape:
        raise ValueError(f"per_sample_loss must have shape {tuple(index.shape)}, got {tuple(per_sample_loss.shape)}")
    rate = as_real("lr", lr, wanted="finite in float32 and > 0")
    # The step is one in float32: an infinite one times a gradient of zero is NaN.
    if not 0 < rate <= torch.finfo(torch.float32).max:
        raise ValueError(f"lr must be finite in float32 and > 0, got {shown(lr)}")
    if not isinstance(mode, str) or mode not in ("exact", "sparse"):
        raise ValueError(f'mode must be "exact" or "sparse", got {shown(mode)}')
    return rate


def check_distinct(batch_size: int, drawable: int, *, stratified: bool) -> None:
    """Raise ValueError if distinct draws are stratified, or more than the examples with weight."""
    if stratified:
        raise ValueError("stratified draws cannot be distinct: stratified=True needs replacement=True")
    if batch_size > drawable:
        raise ValueError(
            f"batch_size must be at most the {drawable} examples with weight when replacement=False, got {batch_size}"
        )


def check_learns(epsilon: float) -> None:
    """Raise ValueError at ε = 1, where the loss of a batch does not depend on the weights."""
    if epsilon == 1:
        raise ValueError(
            "ascend needs epsilon below 1: at 1 the loss of a batch does not depend on the weights; make the pool with "
            "from_weights(weights, epsilon=0.5)"
        )


def index_excess(index: Tensor, num_examples: int) -> Tensor:
    """Return whether an index is outside `0 … N - 1`, and the one that `check_excess` names; int64 `[2]`.

    Args:
        index: int64 `[B]`, B >= 1.
        num_examples: N.
    """
    low, high = index.aminmax()
    return torch.stack([(low < 0) | (high >= num_examples), torch.where(low < 0, low, high)])


def check_excess(excess: list[int], origin: Origin = "this", *, num_examples: int, begin: int = 0) -> None:
    """Raise ValueError if `index_excess` has found an index outside `0 … N - 1`.

    Args:
        excess: Numbers that `index_excess` returned.
        origin: Call of `importance` that they belong to.
        num_examples: N.
        begin: Offset that the error adds to the index and the limits that it reports.
    """
    is_outside, index = excess
    if is_outside:
        where = "" if origin == "this" else "; this was an index of an earlier call of importance, which returned NaN"
        raise ValueError(f"index must be in {begin} … {begin + num_examples - 1}, got {begin + index}{where}")


def checked_weights(weights: Values) -> Tensor:
    """Return valid initial weights of a pool, float64 `[N]`, each 0 or in [1e-30, 1e6].

    If a weight is outside this range, all are multiplied by the same power of two, which keeps their ratios exactly. It
    brings the largest weight to 1 or slightly below, or higher, up to 1e6, if the smallest weight needs it.

    Args:
        weights: `[N]`, N >= 1; real, finite and >= 0.

    Raises:
        TypeError: If `weights` is not a tensor, array or list of numbers.
        ValueError: If `weights` is not 1-D or is empty, or a weight is negative, NaN, infinite or below 1e-36 of the
            largest.

    Example:
        >>> checked_weights([2e9, 0, 1e9]).tolist()
        [0.9313225746154785, 0.0, 0.46566128730773926]
    """
    try:
        numbers = as_tensor("weights", weights)
    except TypeError:
        # as_tensor fails for Python integers beyond int64, which are valid weights.
        if not isinstance(weights, (list, tuple)) or not any(type(w) is int and abs(w) >= 2**63 for w in weights):
            raise
        numbers = torch.tensor([as_real("weights", weight) for weight in weights], dtype=torch.float64)
    if numbers.dim() != 1 or numbers.numel() == 0:
        raise ValueError(f"weights must be [N] with N >= 1, got shape {tuple(numbers.shape)}")
    exact = numbers.double()
    # The negated comparison also selects NaN.
    wrong = ~((exact >= 0) & (exact < math.inf))
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise ValueError(f"weights must each be finite and >= 0, got {float(exact[first])} at position {first}")
    present = exact[exact > 0]
    if present.numel() == 0:
        return exact
    low, high = (float(value) for value in present.aminmax())
    if low >= WEIGHT_MIN and high <= OMEGA_MAX:
        return exact
    # Exponents rather than quotients of the limits: multiplying by a power of two rounds no weight.
    (share, of_high), of_low = math.frexp(high), math.frexp(low)[1]
    most_share, of_most = math.frexp(OMEGA_MAX)
    most = of_most - of_high - (share > most_share)
    exponent = min(max(-of_high, math.frexp(WEIGHT_MIN)[1] + 1 - of_low), most)
    if math.ldexp(low, exponent) < WEIGHT_MIN / 2:
        first = int((exact == low).nonzero()[0])
        raise ValueError(
            f"weights must be 0 or at least 1e-36 of the largest, {high}: got {low} at position {first}, which is "
            "out of the range of float32 weights. Such an example is drawn less than once in 1e36 draws: give it "
            "weight 0"
        )
    # In two steps, because the power itself may overflow float64.
    half = exponent // 2
    return exact * math.ldexp(1.0, half) * math.ldexp(1.0, exponent - half)


def check_state(state: Mapping[str, Tensor], num_examples: int) -> None:
    """Raise unless `state` is a valid state of a pool of N examples.

    Raises:
        KeyError: If a tensor is missing.
        TypeError: If `state` is not a mapping, or an entry not a dense tensor.
        ValueError: If a tensor has another shape or dtype, or a value that is not finite.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a mapping as state_dict returns it, got {type(state).__name__}")
    for name in ("omega", "velocity"):
        if name not in state:
            raise KeyError(f"state must hold 'omega' and 'velocity', got {sorted(map(str, state))}")
        tensor = state[name]
        _check_tensor(f"state[{name!r}]", tensor)
        if tensor.shape != (num_examples,) or tensor.dtype != torch.float32:
            raise ValueError(
                f"state[{name!r}] must be float32 of shape ({num_examples},), "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        low, high = torch.stack(tensor.aminmax()).tolist()
        if math.isnan(low) or high == math.inf or (low == -math.inf and name == "velocity"):
            raise ValueError(f"state[{name!r}] must be finite, got NaN or infinity")
    scale = state.get("scale")
    if scale is not None:
        _check_tensor("state['scale']", scale)
    if scale is not None and (scale.shape != (4,) or scale.dtype != torch.float64):
        raise ValueError(f"state['scale'] must be float64 of shape (4,), got {scale.dtype} of {tuple(scale.shape)}")


def check_scale(scale: Tensor, sums: Tensor) -> None:
    """Raise ValueError unless the quanta and the bound in `scale` are valid for these totals.

    Args:
        scale: float64 `[4]`, the three quanta and the bound.
        sums: float64 `[3]`, the sums of the masses, weights and squared weights.
    """
    *quanta, bound = scale.tolist()
    totals = sums.tolist()
    for quantum, total in zip(quanta, totals, strict=True):
        # A power of two (mantissa 0.5), and a sum of 2^45 … 2^53 quanta: 53-bit additions of multiples are then exact.
        fits = 0 < quantum < math.inf and math.frexp(quantum)[0] == 0.5 and 2**45 <= total / quantum <= 2**53
        if not fits or not 0 <= bound < math.inf:
            raise ValueError(f"state['scale'] does not belong to these weights: got {scale.tolist()} for sums {totals}")


def check_file(path: str | PathLike[str], state: Mapping[str, Tensor], options: Mapping[str, str]) -> None:
    """Raise ValueError unless the contents of a file are a complete pool: its state and its settings."""
    check_settings(path, state, options)
    try:
        check_state(state, state["omega"].numel())
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a background pool: {error}") from error


def check_settings(path: str | PathLike[str], state: Mapping[str, Tensor], options: Mapping[str, str]) -> None:
    """Raise ValueError unless a file has ω of some examples and valid settings. Does not read ω."""
    try:
        if state["omega"].dim() != 1:
            raise ValueError("omega is not 1-D")
        checked_options(state["omega"].numel(), float(options["epsilon"]), float(options["momentum"]), 1.0)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a background pool: {error}") from error
