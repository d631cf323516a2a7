"""Digests of 56 bits: they fit into an int64 of an exchange, and into the seed of a generator."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["digest", "generator_digest"]


def digest(content: bytes) -> int:
    """Return a digest of bytes, in `0 … 2^56 - 1`.

    Example:
        >>> f"{digest(b'pool'):014x}"
        '191af340822747'
    """
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "big")


def generator_digest(generator: torch.Generator) -> str:
    """Return a digest of the state of a generator, 14 hexadecimal digits: processes compare it, and errors show it."""
    return f"{digest(generator.get_state().numpy().tobytes()):014x}"
