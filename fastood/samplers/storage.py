"""Pools as safetensors files, written and read without a second copy in memory: 10^9 examples take 8.1 GB.

The header and the bytes are written here because the safetensors library copies every tensor before it writes. Any
reader of safetensors can read the files (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from fastood.common.files import write_atomically

__all__ = ["SharedFile", "map_tensors", "save_tensors"]

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
    encoded, _ = _layout(tensors, {name: tensor.numel() for name, tensor in tensors.items()}, metadata)
    ordered = _ordered(tensors)

    def write(file: IO[bytes]) -> None:
        file.write(encoded)
        for tensor in ordered.values():
            _write_chunks(file, tensor)

    write_atomically(path, write)


class SharedFile:
    """Safetensors file that several processes write, each its slices: complete, or not there.

    All processes make the object alike. One of them calls `begin`, then all `write`, then one `publish`, each after all
    processes have finished the call before. `discard` removes the temporary file of a save that failed.

    Args:
        path: The file.
        token: Part of the name of the temporary file, equal on every process.
        tensors: Contiguous float tensors by name, of which this process writes its slices.
        lengths: Number of elements of the whole tensors by name.
        metadata: Strings by name.
    """

    def __init__(
        self,
        path: Path,
        token: str,
        tensors: Mapping[str, Tensor],
        lengths: Mapping[str, int],
        metadata: Mapping[str, str],
    ) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{token}.tmp")
        self._tensors = tensors
        self._header, self._begins = _layout(tensors, lengths, metadata)
        self._size = len(self._header) + sum(tensor.element_size() * lengths[name] for name, tensor in tensors.items())

    def begin(self) -> None:
        """Create the temporary file at its full size, with the header."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Exclusive creation: overwrite neither a file of another process nor the target of a symbolic link.
        with self._temporary.open("xb") as file:
            file.write(self._header)
            # Reserves the disk space: a full disk is an error here, before anything else is written.
            os.posix_fallocate(file.fileno(), 0, self._size)

    def write(self, begins: Mapping[str, int]) -> None:
        """Write slices of this process.

        Args:
            begins: First element of each slice in its whole tensor, by name; names left out are not written.

        Raises:
            OSError: If this process does not see the temporary file.
        """
        if not self._temporary.exists() or self._temporary.stat().st_size != self._size:
            raise FileNotFoundError(
                f"{self._path} must be on a file system that all processes share: a process does not see the temporary "
                f"file {self._temporary.name} of rank 0. Without one, save state_dict by torch.distributed.checkpoint"
            )
        with self._temporary.open("r+b") as file:
            for name, begin in begins.items():
                tensor = self._tensors[name]
                file.seek(len(self._header) + self._begins[name] + begin * tensor.element_size())
                _write_chunks(file, tensor)
            file.flush()
            os.fsync(file.fileno())

    def publish(self) -> None:
        """Replace the file by the temporary file."""
        self._temporary.replace(self._path)

    def discard(self) -> None:
        """Remove the temporary file, if it is still there."""
        self._temporary.unlink(missing_ok=True)


def _ordered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in the order of the file: wider elements first, so that every tensor is aligned."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))


def _layout(
    tensors: Mapping[str, Tensor], lengths: Mapping[str, int], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Return the header of a file, and the place of each tensor in bytes after the header.

    Args:
        tensors: The tensors, or slices of them, by name.
        lengths: Number of elements of the whole tensors by name.
        metadata: Strings by name.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    begins, end = {}, 0
    for name, tensor in _ordered(tensors).items():
        begins[name], end = end, end + lengths[name] * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": [lengths[name]], "data_offsets": [begins[name], end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    # Padded to 8 bytes: the tensors behind the header must be aligned, too.
    encoded += b" " * (-len(encoded) % 8)
    return _LENGTH.pack(len(encoded)) + encoded, begins


def _write_chunks(file: IO[bytes], tensor: Tensor) -> None:
    """Write a tensor chunk by chunk, without a copy of all of it on the host."""
    for chunk in torch.split(tensor.detach(), _CHUNK):
        file.write(chunk.cpu().numpy().data)


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
