"""Batches of a step: losses of duplicates are added in batch order, and sums that leave their range are scaled anew."""

import math

import pytest
import torch
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.samplers.state import PoolState
from tests.support.background_pool_samples import LAYOUTS, pool_of

EPSILON = 0.5


def tensors(state: PoolState) -> tuple[Tensor, ...]:
    return state.omega, state.velocity, state.masses, state.stats


def state_on(device: str, weights: Tensor) -> PoolState:
    return pool_of(weights, device=device, epsilon=EPSILON)._state


def ascend(state: PoolState, index: Tensor, loss: Tensor, *, sparse: bool, shared: Tensor | None = None) -> list[int]:
    batch = (x.to(state.omega.device) for x in (index, loss))
    return ops.pool_ascend(*tensors(state), *batch, shared, EPSILON, 0.9, 0.1, sparse).tolist()


def same(got: PoolState, want: PoolState) -> bool:
    return all(torch.equal(g.cpu(), w.cpu()) for g, w in zip(tensors(got), tensors(want), strict=True))


def first_appearances(index: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Each example once, with the sum of its losses in batch order, in float64 as Python adds."""
    sums: dict[int, float] = {}
    for i, value in zip(index.tolist(), loss.tolist(), strict=True):
        sums[i] = sums[i] + value if i in sums else value
    return torch.tensor(list(sums)), torch.tensor(list(sums.values()), dtype=torch.float64)


BATCHES = {
    "all equal": lambda batch: torch.full((batch,), 77),
    "all distinct": lambda batch: torch.randperm(30_000, generator=torch.Generator().manual_seed(0))[:batch],
    "many twice": lambda batch: torch.randint(max(1, batch // 2), (batch,), generator=torch.Generator().manual_seed(0)),
    "two, in turn": lambda batch: torch.arange(batch) % 2 * 29_999,
}


@pytest.mark.parametrize("sparse", [False, True], ids=["exact", "sparse"])
@pytest.mark.parametrize("batch", [1, 2, 31, 255, 256, 257, 4096, 20_000])
@pytest.mark.parametrize("kind", BATCHES)
def test_duplicates_are_added_in_batch_order(kind: str, batch: int, sparse: bool, device: str) -> None:
    """The step of a batch is that of its distinct examples with summed losses, for the same weighted loss."""
    index = BATCHES[kind](batch)
    # Sums of such numbers depend on their order.
    loss = 10.0 ** torch.linspace(-6, 2, batch, dtype=torch.float64).flip(0)
    weights = torch.linspace(0.5, 3, 30_000)
    got, want = state_on(device, weights), state_on("cpu", weights)
    mass, weight = (float(x) for x in want.stats[: ops.SQUARE_TOTAL])
    shared = torch.tensor([mass, weight, 0.25, batch], dtype=torch.float64)
    status = ascend(got, index, loss, sparse=sparse, shared=shared.to(device))
    assert status == ascend(want, *first_appearances(index, loss), sparse=sparse, shared=shared)
    assert same(got, want)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("kind", BATCHES)
def test_steps_of_batches_are_those_of_the_cpu(kind: str) -> None:
    pools = [state_on(device, torch.linspace(0.5, 3, 30_000)) for device in ("cuda", "cpu")]
    for batch in (1, 255, 4096):
        loss = 10.0 ** torch.linspace(-6, 2, batch, dtype=torch.float64)
        for sparse in (True, False):
            for pool in pools:
                assert ascend(pool, BATCHES[kind](batch), loss, sparse=sparse) == [ops.DONE, -1]
            assert same(*pools)


@pytest.mark.parametrize("off", [2.0**6, 2.0**-4], ids=["too coarse", "too fine"])
@pytest.mark.parametrize("stat", ["MASS_QUANTUM", "WEIGHT_QUANTUM", "SQUARE_QUANTUM"])
@pytest.mark.parametrize("sparse", [False, True], ids=["exact", "sparse"])
@pytest.mark.parametrize("name", ["skewed", "half without weight", "three levels"])
def test_a_step_scales_its_sums_anew(name: str, sparse: bool, stat: str, off: float, device: str) -> None:
    """A total that is below 2^46 or above 2^52 quanta: new quanta, and sums as if built for them."""
    state = state_on(device, LAYOUTS[name])
    state.stats[getattr(ops, stat)] *= off
    ops.pool_build(state.omega, state.masses, state.stats, EPSILON)
    index, loss = torch.tensor([1, 3, 1]), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    assert ascend(state, index, loss, sparse=sparse) == [ops.DONE, -1]
    quanta = ops.choose_quanta(ops.pool_sums(state.omega, EPSILON))
    assert torch.equal(state.stats[ops.MASS_QUANTUM : ops.BOUND], quanta)
    stepped = [x.clone() for x in tensors(state)]
    state.sum_up(EPSILON)
    assert all(torch.equal(a, b) for a, b in zip(stepped, tensors(state), strict=True))


@pytest.mark.parametrize("sparse", [False, True], ids=["exact", "sparse"])
def test_a_slice_asks_for_new_quanta(sparse: bool, device: str) -> None:
    """All slices of a sharded pool need the same ones, which none can choose alone."""
    state = state_on(device, LAYOUTS["skewed"])
    state.stats[ops.WEIGHT_QUANTUM] *= 2.0**6
    ops.pool_build(state.omega, state.masses, state.stats, EPSILON)
    before = state.stats.clone()
    mass, weight = (float(x) for x in state.stats[: ops.SQUARE_TOTAL])
    shared = torch.tensor([2 * mass, 2 * weight, 0.5, 4.0], dtype=torch.float64, device=device)
    for index in (torch.tensor([1, 3]), torch.tensor([], dtype=torch.int64)):
        loss = torch.ones(len(index), dtype=torch.float64)
        assert ascend(state, index, loss, sparse=sparse, shared=shared) == [ops.NEEDS_BUILD, -1]
    assert torch.equal(state.stats[ops.MASS_QUANTUM : ops.BOUND], before[ops.MASS_QUANTUM : ops.BOUND])


def test_a_batch_that_is_refused_scales_nothing(device: str) -> None:
    state = state_on(device, LAYOUTS["skewed"])
    state.stats[ops.MASS_QUANTUM] *= 2.0**6
    ops.pool_build(state.omega, state.masses, state.stats, EPSILON)
    before = [x.clone() for x in tensors(state)]
    loss = torch.tensor([math.nan], dtype=torch.float64)
    assert ascend(state, torch.tensor([1]), loss, sparse=False) == [ops.BAD_LOSS, 0]
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(state), strict=True))


@pytest.mark.needs_cuda
def test_a_graph_scales_its_sums_anew() -> None:
    """The host decides nothing in a captured step: replays that leave the range of the quanta are those of the CPU."""
    pools = {device: state_on(device, LAYOUTS["three levels"]) for device in ("cuda", "cpu")}
    index = torch.arange(64) * 100
    loss = torch.full((64,), 1e4, dtype=torch.float64)
    on_cuda = index.cuda(), loss.cuda()

    def step() -> None:
        ops.pool_ascend(*tensors(pools["cuda"]), *on_cuda, None, EPSILON, 0.9, 0.1, False)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # warms up
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    ops.pool_ascend(*tensors(pools["cpu"]), index, loss, None, EPSILON, 0.9, 0.1, False)
    quanta = {tuple(pools["cpu"].stats[ops.MASS_QUANTUM : ops.BOUND].tolist())}
    for _ in range(4):
        graph.replay()
        ops.pool_ascend(*tensors(pools["cpu"]), index, loss, None, EPSILON, 0.9, 0.1, False)
        quanta.add(tuple(pools["cpu"].stats[ops.MASS_QUANTUM : ops.BOUND].tolist()))
        assert same(pools["cuda"], pools["cpu"])
    assert len(quanta) > 1
