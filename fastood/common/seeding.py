"""Independent RNG streams from one seed."""

import zlib

import torch

__all__ = ["named_generator"]


def named_generator(seed: int, *names: str) -> torch.Generator:
    """Return a CPU generator for one purpose, derived from the seed and the names.

    Streams with different names share no draws: if one part of a task consumes more numbers, such as for a larger pool,
    all other parts stay unchanged.

    Args:
        seed: Seed of the run, at least 0.
        *names: Names of the purpose, such as `"background", "letters"`.

    Returns:
        A newly seeded `torch.Generator` on the CPU.

    Raises:
        ValueError: If `seed` is negative.

    Example:
        >>> first = torch.rand(3, generator=named_generator(0, "split"))
        >>> torch.equal(first, torch.rand(3, generator=named_generator(0, "split")))
        True
        >>> torch.equal(first, torch.rand(3, generator=named_generator(0, "noise")))
        False
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or larger, got {seed}")
    # crc32 rather than hash(), which Python salts in every process. torch uses 32 bits to seed its CPU generator.
    return torch.Generator().manual_seed(zlib.crc32("/".join((str(seed), *names)).encode()))
