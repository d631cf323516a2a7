"""Sharded pool over two processes: draw and sparse step, next to the undivided pool and to the exchanges alone."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from harness import Comparison, Run, Timing, quantile

from fastood.samplers import BackgroundPool, ShardedBackgroundPool

Record = Callable[[Comparison, Run], None]
BATCH_SIZE, PROCESSES = 256, 2
LEARNT = 4.0
"""Standard deviation of ω: draws of the undivided pool descend the tree, as those of a sharded pool always do."""
SELECT_EVERY = 1000
GOAL = "two undivided steps + exchanges"


def spread_out(pool: BackgroundPool | ShardedBackgroundPool, rank: int, spread: float) -> None:
    """Give a pool, or a slice, normal ω of this standard deviation; 0 leaves the weights equal."""
    if spread:
        pool._state.omega.normal_(0.5413, spread, generator=torch.Generator().manual_seed(rank))
        pool.load_state_dict({"omega": pool._state.omega, "velocity": pool._state.velocity})


def step_providers(size: int, spread: float, rank: int) -> tuple[dict[str, Run], float]:
    """Return the steps to time, and the bytes of an example over all processes."""
    sharded, whole = ShardedBackgroundPool(size), BackgroundPool(size)
    spread_out(sharded, rank, spread)
    spread_out(whole, 0, spread)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    loss = torch.rand(BATCH_SIZE, generator=generators[0])

    def subject() -> None:
        draws = sharded.draw(BATCH_SIZE, generator=generators[0], verify=False)
        sharded.ascend(draws.index, loss[draws.position], lr=1e-3, mode="sparse")

    def undivided() -> None:
        index, _ = whole.sample(BATCH_SIZE, generator=generators[1])
        whole.ascend(index, loss, lr=1e-3, mode="sparse")

    def exchanges() -> None:
        for numbers in (6, 7):
            every = torch.empty(PROCESSES * numbers, dtype=torch.float64)
            dist.all_gather_into_tensor(every, torch.zeros(numbers, dtype=torch.float64))

    def goal() -> None:
        undivided()
        undivided()
        exchanges()

    state = sharded._state
    held = torch.tensor([sum(part.nbytes for part in (state.omega, state.velocity, state.masses, state.stats))])
    dist.all_reduce(held)
    providers = {"fastood": subject, "undivided": undivided, "exchanges alone": exchanges, GOAL: goal}
    return providers, float(held) / size


def select_providers(size: int, spread: float, rank: int) -> tuple[dict[str, Run], float]:
    """Return selections of a part of the pool, by slices and from the undivided pool."""
    sharded, whole = ShardedBackgroundPool(size), BackgroundPool(size)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    return {
        "fastood": lambda: sharded.select(1 / SELECT_EVERY, generator=generators[0]),
        "undivided": lambda: whole.select(1 / SELECT_EVERY, generator=generators[1]),
        "draws alone": lambda: torch.rand(size, dtype=torch.float64, generator=generators[1]),
    }, 0.0


def in_step(rank: int, store: str, make: Callable[..., object], size: int, spread: float, seconds: float) -> None:
    """Time the providers in turn, both processes the same one at the same time; rank 0 writes the times."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    providers, held = make(size, spread, rank)  # type: ignore[misc]
    names, order = list(providers), random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for run in providers.values():
        run()
    once = torch.tensor([time.perf_counter() - start])
    dist.all_reduce(once)
    calls = 1 if once > 0.1 else 20
    goes_on = torch.ones(1)
    while goes_on:
        order.shuffle(names)
        for name in names:
            run = providers[name]
            run()
            dist.barrier()
            begin = time.perf_counter()
            for _ in range(calls):
                run()
            samples[name].append((time.perf_counter() - begin) / calls)
        enough = len(samples[names[0]]) >= 15 and time.perf_counter() - start > seconds
        goes_on = torch.tensor([0.0 if enough else 1.0])
        dist.broadcast(goes_on, 0)
    if rank == 0:
        torch.save((samples, held), Path(store).with_suffix(".pt"))
    dist.destroy_process_group()


def measure(op: str, make: Callable[..., object], size: int, spread: float, seconds: float) -> Comparison:
    """Return the comparison of one launch of two processes."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        mp.spawn(in_step, args=(str(store), make, size, spread, seconds), nprocs=PROCESSES)
        samples, held = torch.load(store.with_suffix(".pt"))
    timings = {}
    for name, values in samples.items():
        ratios = [value / base for value, base in zip(values, samples["fastood"], strict=True)]
        spread_of = {"p20": quantile(values, 0.2), "p80": quantile(values, 0.8)}
        timings[name] = Timing(
            provider=name,
            median=statistics.median(values),
            **spread_of,
            ratio=statistics.median(ratios),
            ratio_p20=quantile(ratios, 0.2),
            ratio_p80=quantile(ratios, 0.8),
        )
    memory = f", {held:.3f} bytes/example" if held else ""
    return Comparison(
        op=op,
        shape=f"{size}, 2 processes{memory}",
        dtype="float32",
        device="cpu",
        threads=1,
        subject="fastood",
        rounds=len(samples["fastood"]),
        floor=None,
        floor_is="",
        timings=timings,
    )


def no_subject() -> None:
    """Do no work: the subject runs in other processes, out of reach of pytest-benchmark's own report."""


@pytest.mark.parametrize("spread", [LEARNT, 0.0], ids=["skewed", "equal"])
@pytest.mark.parametrize("size", [100_000, 1_000_000, 10_000_000])
def test_sharded_step(size: int, spread: float, budget: dict[str, float], record: Record) -> None:
    op = f"sharded pool, draw and sparse step{', skewed' if spread else ''}"
    record(measure(op, step_providers, size, spread, budget["seconds"]), no_subject)


@pytest.mark.parametrize("size", [1_000_000, 10_000_000])
def test_sharded_select(size: int, budget: dict[str, float], record: Record) -> None:
    record(measure("sharded pool, select", select_providers, size, 0.0, budget["seconds"]), no_subject)
