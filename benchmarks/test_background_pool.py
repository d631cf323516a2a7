"""Background pool: sparse and exact steps, draws without replacement, build, and growth with the pool's size."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from background_pool_peers import MULTINOMIAL_LIMIT, installed, multinomial, peers
from harness import Comparison, Run, compare

from fastood.samplers import BackgroundPool

Record = Callable[[Comparison, Run], None]
ON_CPU = pytest.mark.parametrize("device", ["cpu"])  # peers run on the CPU only


def learnt_pool(size: int, spread: float, device: str = "cpu") -> BackgroundPool:
    """Build a pool with normal ω of this standard deviation: 1 draws by rejection, 4 by descent in the tree."""
    pool = BackgroundPool(size, device=device)
    # In place: at 10^9 examples there is no memory for a second ω.
    pool._state.omega.normal_(0.5413, spread, generator=torch.Generator(device).manual_seed(0))
    pool._state.sum_up(pool.epsilon)
    return pool


def sparse_step(pool: BackgroundPool, batch_size: int) -> Run:
    """Draw with importance, then a sparse step of ascent, by the public calls."""
    generator = torch.Generator(pool.device).manual_seed(0)
    loss = torch.rand(batch_size, generator=generator, device=pool.device)

    def run() -> None:
        index, _ = pool.sample(batch_size, generator=generator)
        pool.ascend(index, loss, lr=1e-3, mode="sparse")

    return run


@pytest.mark.parametrize(
    ("size", "batch_size", "spread"),
    [(1_280_000, 256, 1.0), (1_280_000, 256, 4.0), (1_280_000, 4096, 1.0), (16_000_000, 256, 1.0)],
)
def test_sparse_step(
    size: int, batch_size: int, spread: float, device: str, budget: dict[str, float], record: Record
) -> None:
    pool = learnt_pool(size, spread, device)
    masses = pool.weights.sqrt().float()
    providers = {"fastood": sparse_step(pool, batch_size), **peers(masses, batch_size)}
    name = f"background pool, draw and {'sparse step' if spread == 1 else 'sparse step, skewed'}"
    shape = f"{size} B={batch_size}"
    record(compare(name, shape, providers, subject="fastood", device=device, **budget), providers["fastood"])


def test_distinct(device: str, budget: dict[str, float], record: Record) -> None:
    size, batch_size = 1_280_000, 256
    pool, generator = learnt_pool(size, 1.0, device), torch.Generator(device).manual_seed(0)
    masses = pool.weights.sqrt().float()

    def ours() -> None:
        pool.sample(batch_size, generator=generator, replacement=False)

    providers = {
        "fastood": ours,
        "multinomial": multinomial(masses, batch_size, torch.ones(batch_size, device=device), replacement=False),
    }
    shape = f"{size} B={batch_size}"
    name = "background pool, without replacement"
    record(compare(name, shape, providers, subject="fastood", device=device, **budget), ours)


@ON_CPU
@pytest.mark.parametrize("size", [1_280_000, 16_000_000])
def test_build(size: int, device: str, budget: dict[str, float], record: Record) -> None:
    providers: dict[str, Run] = {"fastood": lambda: BackgroundPool(size)}
    if installed("torchrl", "torchrl's build"):
        from torchrl._torchrl import SumSegmentTreeFp32

        index, masses = torch.arange(size), torch.ones(size)

        def tree() -> None:
            SumSegmentTreeFp32(size)[index] = masses

        providers["torchrl tree"] = tree
    record(compare("background pool, build", f"{size}", providers, subject="fastood", **budget), providers["fastood"])


@pytest.mark.parametrize("threads", sorted({1, torch.get_num_threads()}))
@pytest.mark.parametrize("size", [50_000, 1_280_000, 16_000_000])
def test_exact_step(size: int, threads: int, device: str, budget: dict[str, float], record: Record) -> None:
    """Compare with the authors' way, and with a pass that reads and writes the same 16 bytes per example."""
    if device == "cuda" and threads > 1:
        pytest.skip("host threads make no difference on a GPU")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        batch_size = 128
        pool, generator = learnt_pool(size, 1.0, device), torch.Generator(device).manual_seed(0)
        loss = torch.rand(batch_size, generator=generator, device=device)
        omega = torch.zeros(size, device=device, requires_grad=True)
        optimizer = torch.optim.SGD([omega], lr=100, momentum=0.9, maximize=True)
        streamed = torch.ones(2 * size, device=device)

        def ours() -> None:
            index, _ = pool.sample(batch_size, generator=generator)
            pool.ascend(index, loss, lr=1e-3)

        def authors() -> None:
            """Step by autograd over every weight, with a draw from the current weights."""
            w = F.softplus(omega)
            index = torch.multinomial(w.detach().sqrt(), batch_size, replacement=True, generator=generator)
            importance = w.sqrt().mean() / w.mean() * w[index].sqrt()
            optimizer.zero_grad()
            (importance * loss).mean().backward()
            optimizer.step()

        providers: dict[str, Run] = {"fastood": ours, "streaming pass": lambda: streamed.add_(1.0)}
        if size <= MULTINOMIAL_LIMIT:
            providers["multinomial + autograd"] = authors
        comparison = compare(
            "background pool, draw and exact step", f"{size}", providers, subject="fastood", device=device, **budget
        )
        record(comparison, ours)
    finally:
        torch.set_num_threads(before)


def memory_available() -> int:
    """Return the bytes of available memory."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@ON_CPU
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_growth(
    spread: float, device: str, budget: dict[str, float], record: Record, request: pytest.FixtureRequest
) -> None:
    """Time sparse steps on pools of 10^5 to 10^9 examples, as far as memory allows; their ratio is the growth."""
    largest = 6 if request.config.getoption("--quick") else 9
    providers = {}
    for exponent in range(5, largest + 1):
        if 9 * 10**exponent > memory_available():
            print(f"10^{exponent} examples left out: {memory_available() / 1e9:.1f} GB of memory are free")
            break
        providers[f"10^{exponent}"] = sparse_step(learnt_pool(10**exponent, spread), 256)
    name = f"background pool, time of a sparse step against that on 10^5{'' if spread == 1 else ', skewed'}"
    record(compare(name, "B=256", providers, subject="10^5", **budget), providers["10^5"])
