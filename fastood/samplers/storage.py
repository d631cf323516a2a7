"""A pool as a safetensors file, written from and read into its own memory: 10^9 examples need no second copy.

The format is written here, a header and the bytes, because the library's writer takes a copy of every tensor first.
https://github.com/huggingface/safetensors#format; any reader of safetensors reads these files.
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

_NAMES = {torch.float64: "F64", torch.float32: "F32"}
_DTYPES: dict[str, tuple[torch.dtype, type[np.floating[Any]]]] = {
    "F64": (torch.float64, np.float64),
    "F32": (torch.float32, np.float32),
}
_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 1 << 20
_CHUNK = 1 << 24


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write contiguous float tensors; the file is the old one or the new one, whole, at any moment.

    Raises:
        OSError: The folder cannot be written.
    """
    # Wider elements first: every tensor then begins at a multiple of its element size.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)

    def write(file: IO[bytes]) -> None:
        file.write(_LENGTH.pack(len(encoded)) + encoded)
        for tensor in ordered.values():
            for chunk in torch.split(tensor.detach(), _CHUNK):
                file.write(chunk.cpu().numpy().data)

    write_atomically(path, write)


def map_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map the tensors of a file into memory: pages are read when they are touched, and writes stay private.

    Returns:
        Tensors by name, on the CPU, and the metadata.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no whole safetensors file of float32 and float64 tensors.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > min(_LONGEST_HEADER, size):
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        start = _LENGTH.size + length
        tensors = {}
        for name, entry in header.items():
            dtype, element = _DTYPES[entry["dtype"]]
            begin, end = entry["data_offsets"]
            if math.prod(entry["shape"]) * dtype.itemsize != end - begin or not 0 <= begin < end <= size - start:
                raise ValueError(f"the bytes of {name!r} are not where its header says")
            mapped = np.memmap(path, dtype=element, mode="c", offset=start + begin, shape=tuple(entry["shape"]))
            tensors[name] = torch.from_numpy(mapped)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ValueError(f"{path} is not a whole file of a background pool: {error}") from error
    return tensors, metadata
