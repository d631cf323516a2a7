"""Conversion of tensors, arrays and lists to dense tensors, without changing a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastood.ops._arguments import shown

Values: TypeAlias = Tensor | npt.ArrayLike | Sequence[Tensor]
"""A dense tensor on any device, an array-like, a list of numbers or of tensors, or a number."""

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_FLOAT8 = (
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, *UNSIGNED)


def as_tensor(name: str, values: Values) -> Tensor:
    """Return real numbers as a dense tensor without a gradient; 8-bit floats become float32, which holds them exactly.

    Args:
        name: The argument's name, for the error.
        values: Bool, integer or floating-point numbers of any shape.

    Raises:
        TypeError: If `values` is not a tensor, an array or list of numbers, or is complex, sparse, nested or quantised.
        ValueError: If `values` holds no data (a meta tensor), has masked entries or rows of unequal length.
    """
    tensor = values if isinstance(values, Tensor) else from_array_like(name, values)
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got {tensor.layout}")
    if tensor.is_meta:
        raise ValueError(f"{name} must hold data, got a tensor on the meta device")
    if tensor.dtype in _FLOAT8:
        return tensor.detach().float()
    if tensor.dtype not in (torch.bool, *_FLOATS, *_INTEGERS):
        raise TypeError(f"{name} must be bool, integer or floating point, got {tensor.dtype}")
    return tensor.detach()


def from_array_like(name: str, values: object) -> Tensor:
    """Return an array or a list of numbers as a tensor on the CPU; a list of tensors is stacked.

    Args:
        name: The argument's name, for the error.
        values: An array or a list; not a tensor.

    Raises:
        TypeError: If `values` is not an array or list of real numbers.
        ValueError: If `values` has masked entries or rows of unequal length.

    Example:
        >>> from_array_like("weights", [0.5, 2]), from_array_like("labels", np.array([3, -1], dtype=">i2"))
        (tensor([0.5000, 2.0000], dtype=torch.float64), tensor([ 3, -1], dtype=torch.int16))
    """
    wanted = f"{name} must be a torch.Tensor, an array or numbers"
    if isinstance(values, (list, tuple)) and values and all(isinstance(value, Tensor) for value in values):
        try:
            return torch.stack(cast("list[Tensor]", list(values)))
        except RuntimeError as error:
            raise ValueError(f"{name} must hold tensors of one shape and device, which can be stacked") from error
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(f"{name} must have no masked values: pass .compressed()")
    if values is None or isinstance(values, (str, bytes, dict, set, frozenset)):
        raise TypeError(f"{wanted}, got {type(values).__name__}")
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{wanted} in rows of one length, got {shown(values)}") from error
    except Exception as error:  # __array__ of a foreign type may raise any exception
        raise TypeError(f"{wanted}, got {type(values).__name__}") from error
    if array.dtype.kind == "c":
        raise TypeError(f"{name} must be real, got {array.dtype}")
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{wanted}, got {type(values).__name__} of {array.dtype}")
    # torch.from_numpy needs native byte order, positive strides and writable memory, and accepts only the first of two
    # C types of equal width.
    return torch.from_numpy(np.require(array, np.dtype(f"={array.dtype.kind}{array.dtype.itemsize}"), ["C", "W"]))


def has_dtype(values: Values) -> bool:
    """Return whether `values` carries a dtype; a list of Python numbers does not."""
    if isinstance(values, (list, tuple)):
        return bool(values) and all(isinstance(value, (Tensor, np.generic)) for value in values)
    return isinstance(values, Tensor) or hasattr(values, "dtype")
