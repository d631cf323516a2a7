"""Conversion of scalar arguments: Python and NumPy numbers, tensors of one element, flags, devices, generators."""

from __future__ import annotations

import math
import operator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SHOWN = 40
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed", "bad_alloc")


def as_integer(name: str, value: object, low: int | None = None, high: int | None = None, *, wanted: str = "") -> int:
    """Return an integer argument as a Python int.

    Args:
        name: The argument's name, for the error.
        value: Anything with `__index__`, such as a NumPy integer or an integer tensor of one element; no bool.
        low: Smallest value allowed; None for any.
        high: Largest value allowed; None for any.
        wanted: Requirement as the error states it; by default the range.

    Raises:
        TypeError: If `value` is not an integer.
        ValueError: If `value` is out of range.

    Example:
        >>> import numpy as np
        >>> as_integer("replicates", np.int64(3), 1), as_integer("replicates", torch.tensor(4), 1)
        (3, 4)
    """
    # Fast path for plain ints: at small batches the conversions below cost as much as an op.
    if type(value) is int and (low is None or value >= low) and (high is None or value <= high):
        return value
    wanted = wanted or f"an int{limits(low, high)}"
    if is_bool(value) or (isinstance(value, Tensor) and (value.is_meta or value.numel() != 1)):
        raise TypeError(f"{name} must be {wanted}, got {shown(value)}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be {wanted}, got {shown(value)}") from None
    if (low is not None and number < low) or (high is not None and number > high):
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}")
    return number


def limits(low: int | None, high: int | None) -> str:
    """Return the range of an integer for an error message, with a leading space; empty without a limit."""
    if low is None:
        return "" if high is None else f" <= {high}"
    return f" >= {low}" if high is None else f" in {low} … {high}"


def as_real(name: str, value: object, *, wanted: str = "a real number") -> float:
    """Return a real argument as a Python float; a float32 of 0.95 becomes 0.95, not its nearest binary neighbour.

    Args:
        name: The argument's name, for the error.
        value: A Python or NumPy number, or a real tensor of one element; no bool.
        wanted: Requirement as the error states it.

    Returns:
        The number; infinity for an integer beyond the floats.

    Raises:
        TypeError: If `value` is not a number.

    Example:
        >>> import numpy as np
        >>> as_real("tpr", np.float32(0.95)), float(np.float32(0.95))
        (0.95, 0.949999988079071)
    """
    if type(value) is float:
        return value
    if isinstance(value, Tensor) and value.numel() == 1 and not (value.is_meta or value.is_complex()):
        value = _scalar_of(value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.floating):
        return float(str(value))  # the float64 that prints like the float32, not its binary value
    if is_bool(value) or isinstance(value, (Tensor, np.ndarray, str, bytes, bytearray, complex, np.complexfloating)):
        raise TypeError(f"{name} must be {wanted}, got {shown(value)}")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be {wanted}, got {shown(value)}") from None


def decimal_fraction(value: float) -> Fraction:
    """Return the decimal value of a float as a fraction: 0.1 becomes 1/10, so that 0.1 · 100 is exactly 10.

    Example:
        >>> decimal_fraction(0.95)
        Fraction(19, 20)
    """
    return Fraction(repr(float(value)))


def as_flag(name: str, value: object) -> bool:
    """Return a bool argument, NumPy's too, as a Python bool; raise TypeError for anything else."""
    if value is True or value is False:
        return value
    if not is_bool(value) or isinstance(value, Tensor):
        raise TypeError(f"{name} must be a bool, got {shown(value)}")
    return bool(value)


def as_device(name: str, value: torch.device | str | int | None) -> torch.device:
    """Return a device argument as a `torch.device`; PyTorch's default device for None.

    Raises:
        TypeError: If `value` is not a device, a name or an index.
        ValueError: If no device has this name.
    """
    if value is None:
        return torch.get_default_device()
    if is_bool(value) or not isinstance(value, (torch.device, str, int, np.integer)):
        raise TypeError(f'{name} must be a torch.device or its name, such as "cpu", got {shown(value)}')
    try:
        return torch.device(int(value) if isinstance(value, np.integer) else value)
    except (RuntimeError, OverflowError, ValueError) as error:
        raise ValueError(f'{name} must be a torch.device or its name, such as "cpu", got {shown(value)}') from error


def check_generator(generator: torch.Generator, device: torch.device | None = None, *, like: str = "") -> None:
    """Check that a generator can draw on a device.

    Args:
        generator: A `torch.Generator`; there is no default, so that no draw depends on PyTorch's global state.
        device: Device of the draws; None for the generator's device.
        like: Name of the tensors that are on that device, for the error.

    Raises:
        TypeError: If `generator` is not a `torch.Generator`.
        ValueError: If it is on another type of device.
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if device is not None and generator.device.type != device.type:
        raise ValueError(f"generator must be on {device.type}{like}, got {generator.device.type}")


class allocating:  # noqa: N801  a context manager; contextlib's would cost as much as a small draw
    """Context manager that converts an out-of-memory error to a MemoryError that names the argument.

    Args:
        what: The argument and its value, such as "batch_size 10".
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, RuntimeError):
            return  # torch.OutOfMemoryError is one; the CPU's allocator raises a plain RuntimeError
        words = str(error)
        if isinstance(error, torch.OutOfMemoryError) or any(word in words for word in _NO_MEMORY):
            raise MemoryError(f"{self.what} needs more memory than is available") from error


def is_bool(value: object) -> bool:
    """Return whether `value` is a bool of Python, NumPy or PyTorch."""
    return isinstance(value, (bool, np.bool_)) or (isinstance(value, Tensor) and value.dtype == torch.bool)


def shown(value: object) -> str:
    """Return a short repr of a wrong argument: long integers and tensors are summarised.

    Example:
        >>> shown(10**400), shown(torch.ones(2, 3)), shown("x")
        ('an int of 401 digits', 'a Tensor of shape (2, 3)', "'x'")
    """
    if isinstance(value, Tensor) and value.is_nested:
        return "a nested tensor"
    if (isinstance(value, Tensor) and value.numel() != 1) or (isinstance(value, np.ndarray) and value.size != 1):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:
        return f"an int of {math.floor(abs(value).bit_length() * math.log10(2)) + 1} digits"
    try:
        text = repr(value)
    except Exception:  # a foreign type's own repr must not hide the error that names the argument
        return f"a {type(value).__name__}"
    return text if len(text) <= 2 * _SHOWN else f"{text[: 2 * _SHOWN - 1]}…"


def _scalar_of(value: Tensor) -> Any:
    value = value.detach().cpu().reshape(())
    return value.numpy()[()] if value.dtype in (torch.float32, torch.float16) else value.item()
