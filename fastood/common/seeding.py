"""Independent random streams from one seed."""

import zlib

import torch


def named_generator(seed: int, *names: str) -> torch.Generator:
    """A CPU generator of its own for each purpose, all derived from one seed.

    Streams with different names do not share draws, so that changing how many numbers one part of a task
    consumes (a larger pool, say) leaves every other part as it was.

    Args:
        seed: The seed of the run, 0 or larger.
        *names: What the stream is for, e.g. ``"background", "letters"``.

    Returns:
        A freshly seeded ``torch.Generator`` on the CPU.

    Raises:
        ValueError: `seed` is negative.

    Example:
        >>> first = torch.rand(3, generator=named_generator(0, "split"))
        >>> torch.equal(first, torch.rand(3, generator=named_generator(0, "split")))
        True
        >>> torch.equal(first, torch.rand(3, generator=named_generator(0, "noise")))
        False
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or larger, got {seed}")
    # crc32 rather than hash(), which Python salts anew in every process; torch seeds its CPU generator with 32 bits.
    return torch.Generator().manual_seed(zlib.crc32("/".join((str(seed), *names)).encode()))
