"""Calls of the ops of the background pool: all powers, layouts and statuses, exact and sparse steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.ops import background_pool as pool_ops
from tests.emulation.cases.case import Case, Ops, refusal
from tests.support.background_pool_samples import ADVERSARIAL, LAYOUTS, pool_of

POOL = "background_pool"
EPSILONS = (0.0, 0.3, 0.5, 1.0)


@dataclass(frozen=True)
class Pool:
    """State of a pool, as the CPU built it."""

    omega: Tensor
    velocity: Tensor
    masses: Tensor
    stats: Tensor

    @staticmethod
    def of(weights: Tensor, epsilon: float) -> Pool:
        state = pool_of(weights, epsilon=epsilon)._state
        return Pool(state.omega, state.velocity, state.masses, state.stats)

    def clone(self) -> Pool:
        return Pool(*(x.clone() for x in (self.omega, self.velocity, self.masses, self.stats)))

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.omega, self.velocity, self.masses, self.stats))


def _uniform(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _build(name: str, weights: Tensor, epsilon: float, second_turn: bool = False) -> Case:
    pool = Pool.of(weights, epsilon)

    def run(ops: Ops) -> Iterator[Tensor]:
        made = pool.clone()
        made.masses.fill_(torch.nan)
        ops.background_pool_fill(made.masses, 0.0)
        made.stats[: pool_ops.MASS_QUANTUM] = torch.nan
        made.stats[pool_ops.BOUND] = torch.nan
        ops.background_pool_build(made.omega, made.masses, made.stats, epsilon)
        yield from made

    return Case(POOL, f"build {name}, epsilon {epsilon}", run, second_turn=second_turn)


def _sums(name: str, weights: Tensor, epsilon: float, second_turn: bool = False, large: bool = False) -> Case:
    pool = Pool.of(weights, epsilon)
    # Sums of values that are not rounded to quanta: the order of additions shows in the last bits.
    return Case(
        POOL,
        f"sums of {name}, epsilon {epsilon}",
        lambda ops: ops.background_pool_sums(pool.omega, epsilon).split(1),
        ulps=16,
        second_turn=second_turn,
        large=large,
    )


def _draw(name: str, weights: Tensor, epsilon: float, count: int, second_turn: bool = False) -> Case:
    pool = Pool.of(weights, epsilon)
    uniform = torch.cat([_uniform(count), torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)])
    total, quantum = pool.stats[pool_ops.MASS_TOTAL], pool.stats[pool_ops.MASS_QUANTUM]
    target = (uniform * (total / quantum)).floor() * quantum

    def run(ops: Ops) -> Iterator[Tensor]:
        index, importance = ops.background_pool_draw(pool.omega, pool.masses, pool.stats, uniform, epsilon)
        yield from (index, importance)
        yield ops.background_pool_find(pool.omega, pool.masses, pool.stats, target, epsilon)
        yield ops.background_pool_importance(pool.omega, pool.stats, index, epsilon)

    return Case(POOL, f"draw {name}, epsilon {epsilon}", run, second_turn=second_turn)


def _ascend(
    name: str, weights: Tensor, epsilon: float, count: int, second_turn: bool = False, twice: bool = True
) -> Case:
    pool = Pool.of(weights, epsilon)
    uniform = _uniform(count)
    if twice:  # each example, the second time at another place
        index = (uniform * len(weights)).long()
        index[count // 2 :] = index[: count - count // 2].flip(0)
    else:
        index = uniform.argsort()
    # A moving start, so that momentum counts.
    pool.velocity.copy_(torch.linspace(-1, 1, len(weights)))

    def run(ops: Ops) -> Iterator[Tensor]:
        now = pool.clone()
        for step in range(2):
            status = ops.background_pool_ascend(*now, index, uniform, None, epsilon, 0.9, 5.0, step % 2 == 1)
            yield status
            yield from (x.clone() for x in now)

    return Case(POOL, f"ascend {name}, epsilon {epsilon}, {count} draws", run, second_turn=second_turn)


def _fill(count: int, dtype: torch.dtype) -> Case:
    def run(ops: Ops) -> list[Tensor]:
        state = torch.full((count,), 7, dtype=dtype)
        ops.background_pool_fill(state, 0.1)
        return [state]

    return Case(POOL, f"fill {count} of {dtype}", run, second_turn=count > 512)


def _bad_batches() -> Iterator[Case]:
    pool = Pool.of(LAYOUTS["skewed"], 0.5)
    good, loss = torch.tensor([1, 2, 4, 3, 9]), torch.ones(5, dtype=torch.float64)

    def case(name: str, index: Tensor, loss: Tensor, shared: Tensor | None = None, lr: float = 2.0) -> Case:
        def run(ops: Ops) -> Iterator[Tensor]:
            for sparse in (False, True):
                now = pool.clone()
                yield ops.background_pool_ascend(*now, index, loss, shared, 0.5, 0.9, lr, sparse)
                yield from now

        return Case(POOL, f"ascend {name}", run)

    yield case("index too large", torch.tensor([1, 2, 400, 3, 999]), loss)
    yield case("negative index", torch.tensor([1, 2, 4, -1, 3]), loss)
    for name, value in (("NaN", torch.nan), ("infinite", torch.inf), ("negative", -1.0)):
        yield case(f"{name} loss", good, torch.where(torch.arange(5) == 2, value, loss))
    yield case("too large a loss", good, loss * 1e300)
    yield case("too large a step", good, loss, lr=1e30)
    sums = pool.stats[:2]
    shared = torch.cat([sums * 2, torch.tensor([0.4, 40.0], dtype=torch.float64)])
    yield case("with sums of all shards", good, loss, shared)
    yield case("of a shard without draws", good[:0], loss[:0], shared)
    empty = torch.empty(0, dtype=torch.int64)
    yield refusal(
        POOL,
        "an empty batch",
        lambda ops: ops.background_pool_ascend(*pool.clone(), empty, loss[:0], None, 0.5, 0.9, 2.0, False),
    )
    yield refusal(POOL, "float64 omega", lambda ops: ops.background_pool_sums(pool.omega.double(), 0.5))
    yield refusal(POOL, "strided fill", lambda ops: ops.background_pool_fill(pool.omega.clone()[::2], 0.5))
    yield refusal(
        POOL, "integers to fill", lambda ops: ops.background_pool_fill(torch.zeros(3, dtype=torch.int64), 0.5)
    )


def _three_levels(weights: Tensor) -> Case:
    """Return an exact step, and one that is refused, on a pool whose third level has a kernel of its own."""
    pool = Pool.of(weights, 0.5)
    loss = torch.ones(3, dtype=torch.float64)

    def run(ops: Ops) -> Iterator[Tensor]:
        now = pool.clone()
        for last in (len(weights) - 1, len(weights)):
            index = torch.tensor([5, 70_000, last])
            yield ops.background_pool_ascend(*now, index, loss, None, 0.5, 0.9, 5.0, False)
            yield from (x.clone() for x in now)

    return Case(POOL, "ascend three levels", run, second_turn=True)


def _coasting(name: str, weights: Tensor, velocity: Tensor, sparse: bool, sharded: bool = False) -> Case:
    """Return a step without loss: the examples move by their velocity alone."""
    pool = Pool.of(weights, 0.5)
    pool.velocity.copy_(velocity)
    index = torch.arange(min(len(weights), 50))
    loss = torch.zeros(len(index), dtype=torch.float64)
    totals = [*pool.stats[:2].tolist(), 0.0, float(len(index))]
    shared = torch.tensor(totals, dtype=torch.float64) if sharded else None

    def run(ops: Ops) -> Iterator[Tensor]:
        now = pool.clone()
        yield ops.background_pool_ascend(*now, index, loss, shared, 0.5, 0.9, 1.0, sparse)
        yield from now

    kind = ("sparse" if sparse else "exact") + ", sharded" * sharded
    return Case(POOL, f"coast {name}, {kind}", run)


def _coasts() -> Iterator[Case]:
    one, skewed = LAYOUTS["one"], LAYOUTS["skewed"]
    for sparse in (False, True):
        # The sum of squares, 2^49 quanta at the start, then has 2^52.5 or 2^42.6 of them, and other quanta are chosen.
        for sharded in (False, True):
            yield _coasting("up out of the quanta", one, torch.tensor([3.139]), sparse, sharded)
            yield _coasting("down out of the quanta", one, torch.tensor([-3.1]), sparse, sharded)
        yield _coasting("out of the quanta, two levels", LAYOUTS["uniform"].repeat(5), torch.tensor(3.139), sparse)
        yield _coasting("to the largest omega", one, torch.tensor([2e6]), sparse)
        yield _coasting("to the least omega", skewed, torch.where(torch.arange(333) % 3 == 0, -1e3, 0.5), sparse)


def _importance_outside() -> Case:
    pool = Pool.of(LAYOUTS["half without weight"], 0.3)
    index = torch.arange(-3, 720)
    inside = (index >= 0) & (index < 700)

    def run(ops: Ops) -> Iterator[Tensor]:
        if ops is torch.ops.fastood:  # which refuses them: CUDA returns NaN
            found = torch.full(index.shape, torch.nan, dtype=torch.float64)
            found[inside] = ops.background_pool_importance(pool.omega, pool.stats, index[inside], 0.3)
            yield found
        else:
            yield ops.background_pool_importance(pool.omega, pool.stats, index, 0.3)

    return Case(POOL, "importance inside and outside", run, second_turn=True)


def pool_cases() -> list[Case]:
    """Return the cases of the background pool."""
    small = ("uniform", "skewed", "half without weight", "one", "a leaf and one")
    four_blocks = torch.linspace(0.5, 1.5, 4096 * 3 + 70).roll(700)
    three_levels = torch.linspace(0.5, 1.5, 4096 * 64 + 70)
    cases = [
        *(_fill(count, dtype) for count in (0, 5, 1000) for dtype in (torch.float32, torch.float64)),
        *(_build(name, LAYOUTS[name], 0.5) for name in small),
        *(_build("two levels", LAYOUTS["uniform"].repeat(5), epsilon) for epsilon in EPSILONS),
        _build("four blocks", four_blocks, 0.5, second_turn=True),
        *(_sums("two levels", LAYOUTS["uniform"].repeat(5), epsilon) for epsilon in EPSILONS),
        _sums("four blocks", four_blocks, 0.5, second_turn=True),
        # 1,025 blocks: more partial sums than `finish_kernel` has threads.
        _sums("1,025 blocks", torch.linspace(0.5, 1.5, 4096 * 1024 + 5), 0.0, large=True),
        *(_draw(name, LAYOUTS[name], 0.5, 40) for name in small),
        *(_draw("skewed", LAYOUTS["skewed"], epsilon, 40) for epsilon in EPSILONS if epsilon != 0.5),
        *(_draw("geometric", LAYOUTS["geometric over 30 decades"], epsilon, 20) for epsilon in EPSILONS),
        _draw("two levels by descent", torch.linspace(0.001, 5, 5000).double() ** 5, 1.0, 40, second_turn=True),
        *(_draw(name, weights, 0.5, 6) for name, weights in ADVERSARIAL.items()),
        *(_ascend(name, LAYOUTS[name], 0.5, 40) for name in small),
        *(_ascend("skewed", LAYOUTS["skewed"], epsilon, 40) for epsilon in EPSILONS if epsilon != 0.5),
        _ascend("two levels", LAYOUTS["one of many"], 0.5, 40),
        *_coasts(),
        _ascend("three blocks of draws", LAYOUTS["uniform"], 0.5, 600, second_turn=True),
        _ascend("each example once", LAYOUTS["uniform"], 0.5, 1000, second_turn=True, twice=False),
        _ascend("four blocks", four_blocks, 0.5, 40, second_turn=True),
        *_bad_batches(),
        _importance_outside(),
        _build("three levels", three_levels, 0.5, second_turn=True),
        _three_levels(three_levels),
    ]
    return cases
