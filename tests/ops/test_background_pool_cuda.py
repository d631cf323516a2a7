"""The pool on a GPU against the pool on the CPU: the same maths, rounded alike, hence the same bits."""

import pytest
import torch
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.samplers import BackgroundPool
from tests.support.background_pool_samples import ADVERSARIAL, LAYOUTS, pool_args, pool_of

pytestmark = pytest.mark.needs_cuda


def state_of(pool: BackgroundPool) -> dict[str, Tensor]:
    return {name: getattr(pool._state, name).cpu() for name in ("omega", "velocity", "masses", "stats")}


def assert_same(got: BackgroundPool, want: BackgroundPool) -> None:
    for name, tensor in state_of(want).items():
        assert torch.equal(state_of(got)[name], tensor), name


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("name", LAYOUTS)
def test_draws_and_steps_are_those_of_the_cpu(name: str, epsilon: float, generator: torch.Generator) -> None:
    pools = {device: pool_of(LAYOUTS[name], epsilon=epsilon, device=device) for device in ("cpu", "cuda")}
    assert_same(pools["cuda"], pools["cpu"])
    for step in range(6):
        uniform = torch.rand(500, dtype=torch.float64, generator=generator)
        drawn = {}
        for device, pool in pools.items():
            s = pool._state
            drawn[device] = ops.pool_draw(s.omega, s.masses, s.stats, uniform.to(device), epsilon)
            found = s.find(uniform.to(device), epsilon)
            pool.ascend(drawn[device][0], uniform.to(device), lr=5.0, mode=("exact", "sparse")[step % 2])
            drawn[device] = (*drawn[device], found, pool.importance(found))
        for got, want in zip(drawn["cuda"], drawn["cpu"], strict=True):
            assert torch.equal(got.cpu(), want)
        assert_same(pools["cuda"], pools["cpu"])


def test_every_boundary_is_found(generator: torch.Generator) -> None:
    for weights in ADVERSARIAL.values():
        cpu, cuda = (pool_of(weights, device=device)._state for device in ("cpu", "cuda"))
        uniform = torch.rand(5000, dtype=torch.float64, generator=generator)
        edges = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
        both = torch.cat([uniform, edges])
        assert torch.equal(cuda.find(both.cuda(), 0.5).cpu(), cpu.find(both, 0.5))


def test_bad_batches_change_nothing() -> None:
    pool = BackgroundPool(100, device="cuda")
    before = state_of(pool)
    good = torch.tensor([1, 2], device="cuda")
    for index, loss, message in (
        (torch.tensor([1, 100], device="cuda"), torch.ones(2), "index must be in 0 … 99, got 100"),
        (good, torch.tensor([1.0, -1.0]), "at position 1 .example 2"),
        (good, torch.full((2,), 1e38), "must stay in float32's range"),
    ):
        pool.ascend(index, loss.cuda(), lr=1e5)
        with pytest.raises(ValueError, match=message):
            pool.synchronize()
        assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(pool).items())


def test_a_graph_replays_draw_and_step() -> None:
    pool, want = (BackgroundPool(5000, device=device) for device in ("cuda", "cpu"))
    uniform = torch.rand(256, dtype=torch.float64)
    static = uniform.cuda()
    s = pool._state

    def step(mode: str) -> None:
        index, importance = ops.pool_draw(s.omega, s.masses, s.stats, static, 0.5)
        pool.ascend(index, importance, lr=3.0, mode=mode)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step("exact")  # warms up
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step("sparse")
        step("exact")
    for _ in range(3):
        graph.replay()
    t = want._state
    for mode in ("exact", *("sparse", "exact") * 3):
        index, importance = ops.pool_draw(t.omega, t.masses, t.stats, uniform, 0.5)
        want.ascend(index, importance, lr=3.0, mode=mode)
    assert_same(pool, want)


def test_ops_agree() -> None:
    for (name, op, on_cuda), (_, _, on_cpu) in zip(pool_args("cuda"), pool_args("cpu"), strict=True):
        got, want = op(*on_cuda), op(*on_cpu)
        for g, w in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, want)), strict=True):
            if name == "background_pool_sums":
                torch.testing.assert_close(g.cpu(), w, rtol=1e-12, atol=0)
            elif w is not None:
                assert torch.equal(g.cpu(), w), name
