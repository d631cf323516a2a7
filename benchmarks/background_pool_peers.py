"""Peers of the background pool, each as one call: draw B examples by mass, then write B new masses.

Peers that are not installed are skipped with a message; `pip install torchrl cpprb` installs both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from harness import Run
from torch import Tensor
from torch.utils.data import WeightedRandomSampler

MULTINOMIAL_LIMIT = 1 << 24


def cumsum_search(masses: Tensor, batch_size: int, new: Tensor) -> Run:
    """Draw by a float64 running sum and binary search, the way left above the size limit of `torch.multinomial`."""

    def run() -> None:
        running = masses.cumsum(0, dtype=torch.float64)
        uniform = torch.rand(batch_size, dtype=torch.float64, device=masses.device)
        index = torch.searchsorted(running, uniform * running[-1], right=True)
        masses[index.clamp_(max=len(masses) - 1)] = new

    return run


def multinomial(masses: Tensor, batch_size: int, new: Tensor, *, replacement: bool = True) -> Run:
    """Draw by `torch.multinomial` from weights that are written after every draw."""

    def run() -> None:
        masses[torch.multinomial(masses, batch_size, replacement=replacement)] = new

    return run


def weighted_random_sampler(masses: Tensor, batch_size: int, new: Tensor) -> Run:
    """Construct a `WeightedRandomSampler` for every batch: its weights cannot change later."""

    def run() -> None:
        masses[torch.tensor(list(WeightedRandomSampler(masses, batch_size)))] = new

    return run


def numpy_choice(masses: Tensor, batch_size: int, new: Tensor) -> Run:
    """Draw by `numpy.random.Generator.choice(p=...)`."""
    p, values, source = masses.double().numpy().copy(), new.double().numpy(), np.random.default_rng(0)

    def run() -> None:
        p[source.choice(len(p), batch_size, p=p / p.sum())] = values

    return run


def torchrl_tree(masses: Tensor, batch_size: int, new: Tensor) -> Run:
    """Draw from the C++ sum tree of torchrl, without its Python layer."""
    from torchrl._torchrl import SumSegmentTreeFp32

    size = len(masses)
    tree = SumSegmentTreeFp32(size)
    tree[torch.arange(size)] = masses

    def run() -> None:
        index = tree.scan_lower_bound(torch.rand(batch_size) * tree.query(0, size))
        tree[index] = new

    return run


def torchrl_cuda_tree(masses: Tensor, batch_size: int, new: Tensor) -> Run | None:
    """Draw from torchrl's sum tree on the GPU; None, with a line, if its wheel was built without CUDA."""
    import torchrl._torchrl

    if not hasattr(torchrl._torchrl, "CudaSumSegmentTreeFp32"):
        print("torchrl was built without CUDA: no row of its tree", file=sys.stderr)
        return None
    size = len(masses)
    tree = torchrl._torchrl.CudaSumSegmentTreeFp32(size, masses.device)
    tree[torch.arange(size, device=masses.device)] = masses
    left, right = (torch.full((batch_size,), end, device=masses.device) for end in (0, size))

    def run() -> None:
        index = tree.scan_lower_bound(torch.rand(batch_size, device=masses.device) * tree.query(left, right))
        tree[index] = new

    return run


def torchrl_sampler(masses: Tensor, batch_size: int, new: Tensor) -> Run:
    """Draw from the public sampler of torchrl around its sum tree."""
    from torchrl.data import TensorStorage
    from torchrl.data.replay_buffers.samplers import PrioritizedSampler

    size = len(masses)
    storage = TensorStorage(torch.zeros(size, dtype=torch.int8))
    storage.set(range(size), torch.zeros(size, dtype=torch.int8))
    sampler = PrioritizedSampler(size, alpha=1.0, beta=1.0)
    sampler.extend(torch.arange(size))
    sampler.update_priority(torch.arange(size), masses)

    def run() -> None:
        index, _ = sampler.sample(storage, batch_size)
        sampler.update_priority(index, new)

    return run


def cpprb_buffer(masses: Tensor, batch_size: int, new: Tensor) -> Run:
    """Draw from the prioritised replay buffer of cpprb."""
    from cpprb import PrioritizedReplayBuffer

    buffer = PrioritizedReplayBuffer(len(masses), {"x": {"dtype": np.int8}}, alpha=1.0)
    buffer.add(x=np.zeros(len(masses), np.int8), priorities=masses.numpy())
    values = new.numpy()

    def run() -> None:
        buffer.update_priorities(buffer.sample(batch_size, beta=1.0)["indexes"], values)

    return run


def installed(module: str, peer: str) -> bool:
    """Return whether a peer is installed, and print a line if it is not."""
    if find_spec(module) is None:
        print(f"{module} is not installed: no row of {peer}", file=sys.stderr)
        return False
    return True


def peers(masses: Tensor, batch_size: int) -> dict[str, Run]:
    """Return the installed peers by name, each on its own copy of the masses float32 `[N]`."""
    chosen = torch.randint(len(masses), (batch_size,), generator=torch.Generator().manual_seed(1))
    new = masses[chosen.to(masses.device)]
    made: dict[str, Callable[[], Run | None]] = {}
    if masses.is_cuda:
        if len(masses) <= MULTINOMIAL_LIMIT:
            made["multinomial"] = lambda: multinomial(masses.clone(), batch_size, new)
        made["cumsum + searchsorted"] = lambda: cumsum_search(masses.clone(), batch_size, new)
        if installed("torchrl", "torchrl's CUDA tree"):
            made["torchrl CUDA tree"] = lambda: torchrl_cuda_tree(masses, batch_size, new)
        return {name: run for name, make in made.items() if (run := make()) is not None}
    if len(masses) <= MULTINOMIAL_LIMIT:
        made["multinomial"] = lambda: multinomial(masses.clone(), batch_size, new)
        made["multinomial f64"] = lambda: multinomial(masses.double(), batch_size, new.double())
        made["WeightedRandomSampler"] = lambda: weighted_random_sampler(masses.double(), batch_size, new.double())
    made["cumsum + searchsorted"] = lambda: cumsum_search(masses.clone(), batch_size, new)
    made["numpy choice"] = lambda: numpy_choice(masses, batch_size, new)
    if installed("torchrl", "torchrl's tree"):
        made["torchrl tree"] = lambda: torchrl_tree(masses, batch_size, new)
        made["torchrl sampler"] = lambda: torchrl_sampler(masses, batch_size, new)
    if installed("cpprb", "cpprb"):
        made["cpprb"] = lambda: cpprb_buffer(masses, batch_size, new)
    return {name: run for name, make in made.items() if (run := make()) is not None}
