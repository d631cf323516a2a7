"""Memory-mapped files of a pool, and digests of files."""

import hashlib
import warnings
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from torch import Tensor


def map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Memory-map an .npy file.

    Args:
        path: The file.
        dtype: Expected dtype, as NumPy spells it.
        shape: Expected shape.

    Returns:
        Read-only tensor of this dtype and shape.

    Raises:
        ValueError: If the file is damaged, or has another dtype or shape.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, SyntaxError, EOFError, TokenError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{path} must be {dtype} {list(shape)}, got {array.dtype} {list(array.shape)}")
    return read_only_tensor(array)


def read_only_tensor(array: "np.ndarray[Any, Any]") -> Tensor:
    """Return a tensor that shares the memory of a read-only array."""
    with warnings.catch_warnings():
        # PyTorch has no read-only tensors. A private writable map would count against the memory limit in full.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
