"""Pools as safetensors files, written and read without a second copy in memory: 10^9 examples take 8.1 GB.

The header and the bytes are written here because the safetensors library copies every tensor before it writes. Any
reader of safetensors can read the files (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from fastood.common.files import write_atomically

__all__ = ["map_tensors", "save_tensors"]

_NAMES = {torch.float64: "F64", torch.float32: "F32"}
_DTYPES: dict[str, tuple[torch.dtype, type[np.floating[Any]]]] = {
    "F64": (torch.float64, np.float64),
    "F32": (torch.float32, np.float32),
}
_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 1 << 20
_CHUNK = 1 << 24


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write contiguous float tensors atomically: at any time the file is the complete old one or the complete new one.

    Args:
        path: The file.
        tensors: float32 and float64 tensors by name.
        metadata: Strings by name.

    Raises:
        OSError: If the folder cannot be written.
    """
    # Wider elements first, so that every tensor begins at a multiple of its element size.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    # Padded to 8 bytes: the tensors behind the header must be aligned, too.
    encoded += b" " * (-len(encoded) % 8)

    def write(file: IO[bytes]) -> None:
        file.write(_LENGTH.pack(len(encoded)) + encoded)
        for tensor in ordered.values():
            for chunk in torch.split(tensor.detach(), _CHUNK):
                file.write(chunk.cpu().numpy().data)

    write_atomically(path, write)


def map_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map the tensors of a file into memory: pages are read on first access, and writes do not change the file.

    Returns:
        Tensors by name, on the CPU, and the metadata.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a complete safetensors file of float32 and float64 tensors.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > min(_LONGEST_HEADER, size):
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        start = _LENGTH.size + length
        tensors = {}
        for name, entry in header.items():
            dtype, element = _DTYPES[entry["dtype"]]
            begin, end = entry["data_offsets"]
            if math.prod(entry["shape"]) * dtype.itemsize != end - begin or not 0 <= begin < end <= size - start:
                raise ValueError(f"the data of {name!r} are not where the header places them")
            mapped = np.memmap(path, dtype=element, mode="c", offset=start + begin, shape=tuple(entry["shape"]))
            tensors[name] = torch.from_numpy(mapped)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ValueError(f"{path} is not a complete background pool file: {error}") from error
    return tensors, metadata
