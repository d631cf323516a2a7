"""Steps against autograd over every weight, sums against their recomputation, bad batches against an unchanged pool."""

import math
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.ops.reference import background_pool as reference
from fastood.samplers import BackgroundPool
from tests.support.background_pool_samples import LAYOUTS, pool_of


def assert_sums_are_right(pool: BackgroundPool) -> None:
    """Kept sums equal rebuilt ones bit for bit, and a float64 recomputation to rounding."""
    state = pool._state
    masses, stats = torch.zeros_like(state.masses), state.stats.clone()
    ops.pool_build(state.omega, masses, stats, pool.epsilon)
    assert torch.equal(masses, state.masses)
    assert torch.equal(stats[: ops.BOUND], state.stats[: ops.BOUND])
    assert stats[ops.BOUND] <= state.stats[ops.BOUND]
    w, p = reference.weights_of(state.omega), reference.masses_of(state.omega, pool.epsilon)
    want = torch.stack([p.sum(), w.sum(), w.square().sum()])
    # ε log w rounds in float32 for a general ε, at weights far from one.
    torch.testing.assert_close(state.stats[:3], want, rtol=3e-6 if pool.epsilon not in (0, 0.5, 1) else 5e-7, atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("name", ["uniform", "skewed", "half without weight", "three levels"])
def test_exact_steps_equal_autograd_and_sgd(
    name: str, epsilon: float, momentum: float, generator: torch.Generator
) -> None:
    pool = pool_of(LAYOUTS[name], epsilon=epsilon, momentum=momentum)
    omega = pool.state_dict()["omega"].double()
    present = omega != -torch.inf
    velocity = torch.zeros_like(omega)
    hardness = torch.rand(len(pool), generator=generator, dtype=torch.float64) * 2
    for _ in range(50 if len(pool) > 5000 else 200):
        index, _ = pool.sample(16, generator=generator)
        loss = hardness[index]
        gradient = reference.gradient_of(omega, index, loss, epsilon).where(present, 0)
        velocity = momentum * velocity + gradient
        omega = torch.where(present, omega + 3.0 * velocity, omega)
        pool.ascend(index, loss, lr=3.0)
    # A relative error of w is an absolute one of ω, float32: where ω = -15, a step rounds off up to 5e-7.
    rtol = 5e-5 if name == "skewed" else 1e-5
    torch.testing.assert_close(pool.weights, reference.weights_of(omega), rtol=rtol, atol=0)
    assert_sums_are_right(pool)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 0.5])
def test_sparse_steps_are_the_drawn_coordinates_of_exact_ones(epsilon: float, generator: torch.Generator) -> None:
    pool = pool_of(LAYOUTS["three levels"], epsilon=epsilon, momentum=0.5)
    for _ in range(20):
        index = pool.sample(30, generator=generator)[0]
        index[:4] = index[4]  # drawn five times
        loss = torch.rand(30, generator=generator)
        before = pool.state_dict()
        exact = BackgroundPool(len(pool), epsilon=epsilon, momentum=0.5)
        exact.load_state_dict(before)
        exact.ascend(index, loss, lr=2.0)
        pool.ascend(index, loss, lr=2.0, mode="sparse")
        for name in ("omega", "velocity"):
            want = before[name].clone()
            want[index] = exact.state_dict()[name][index]
            assert torch.equal(pool.state_dict()[name], want)
        assert_sums_are_right(pool)


def test_duplicates_are_summed_in_any_order(generator: torch.Generator) -> None:
    index = torch.randint(5, (400,), generator=generator) * 97
    loss = torch.randint(16, (400,), generator=generator).double() / 8  # sums of these are exact
    pools = [BackgroundPool(500, epsilon=0.0) for _ in range(2)]
    order = torch.randperm(400, generator=generator)
    pools[0].ascend(index, loss, lr=1.0)
    pools[1].ascend(index[order], loss[order], lr=1.0)
    torch.testing.assert_close(pools[0].weights, pools[1].weights, rtol=1e-7, atol=0)
    want = reference.gradient_of(torch.full((500,), 0.54132485), index, loss, 0.0)
    torch.testing.assert_close(pools[0].state_dict()["velocity"].double(), want, rtol=1e-5, atol=1e-9)


def test_sums_survive_weights_that_grow_and_fall_by_decades(generator: torch.Generator) -> None:
    """Totals that leave the range of their quanta are rounded anew; draws stay right before and after."""
    pool = BackgroundPool(200, momentum=0.0)
    quanta = {float(pool._state.stats[ops.SQUARE_QUANTUM])}
    for step in range(60):
        index = pool.sample(16, generator=generator)[0] if step % 2 else torch.arange(16)
        pool.ascend(index, torch.full((16,), 1e3), lr=1e4, mode=("exact", "sparse")[step % 2])
        assert_sums_are_right(pool)
        quanta.add(float(pool._state.stats[ops.SQUARE_QUANTUM]))
        assert (pool.weights[pool.sample(100, generator=generator)[0]] > 0).all()
    assert len(quanta) > 1


step_plans = st.lists(
    st.tuples(
        st.sampled_from(["exact", "sparse", "sample", "reload", "save", "shard"]),
        st.integers(0, 2**31),
        st.floats(0.01, 300.0),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([1, 2, 63, 64, 65, 130, 4096, 4097]),
    epsilon=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    plan=step_plans,
)
def test_any_sequence_keeps_the_sums(size: int, epsilon: float, plan: list[tuple[str, int, float]]) -> None:
    pool = BackgroundPool(size, epsilon=epsilon)
    for action, seed, lr in plan:
        generator = torch.Generator().manual_seed(seed)
        index, _ = pool.sample(7, generator=generator)
        if action in ("exact", "sparse"):
            pool.ascend(index, torch.rand(7, generator=generator) * 5, lr=lr, mode=action)
        elif action == "reload":
            other = BackgroundPool(size, epsilon=epsilon)
            other.load_state_dict(pool.state_dict())
            assert torch.equal(other._state.masses, pool._state.masses)
            assert torch.equal(other._state.stats, pool._state.stats)
            pool = other
        elif action == "save":
            with tempfile.TemporaryDirectory() as folder:
                pool.save(Path(folder) / "pool")
                other = BackgroundPool.from_file(Path(folder) / "pool")
            assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in pool.state_dict().items())
            pool = other
        elif action == "shard":
            cuts = [0, size // 3, size // 2, size]
            parts = [pool._state.part(a, b, epsilon) for a, b in pairwise(cuts) if a < b]
            totals = torch.stack([part.stats[: ops.MASS_QUANTUM] for part in parts]).sum(0)
            assert torch.equal(totals, pool._state.stats[: ops.MASS_QUANTUM])
    assert_sums_are_right(pool)


def test_a_resumed_pool_goes_on_bit_for_bit(generator: torch.Generator) -> None:
    def steps(pool: BackgroundPool, count: int, source: torch.Generator) -> Tensor:
        drawn = []
        for k in range(count):
            index, importance = pool.sample(20, generator=source)
            pool.ascend(index, importance * (index % 7 == 0), lr=30.0, mode=("sparse", "exact")[k % 3 == 0])
            drawn.append(index)
        return torch.cat(drawn)

    pool = pool_of(LAYOUTS["skewed"])
    steps(pool, 100, generator)
    saved, position = pool.state_dict(), generator.get_state()
    resumed = BackgroundPool(len(pool))
    resumed.load_state_dict(saved)
    want = steps(pool, 100, generator)
    generator.set_state(position)
    assert torch.equal(steps(resumed, 100, generator), want)
    assert all(torch.equal(resumed.state_dict()[name], tensor) for name, tensor in pool.state_dict().items())


def test_examples_without_weight_never_learn(generator: torch.Generator) -> None:
    pool = BackgroundPool.from_weights(torch.tensor([1.0, 0.0, 2.0]), epsilon=0.5)
    for mode in ("exact", "sparse"):
        pool.ascend(torch.tensor([0, 1]), torch.ones(2), lr=1.0, mode=mode)
    assert pool.weights[1] == 0
    assert pool.importance(torch.tensor([1])) == 0
    assert 1 not in pool.top(2)
    assert_sums_are_right(pool)


def test_weights_are_taken_over(generator: torch.Generator) -> None:
    weights = torch.cat([torch.zeros(1), torch.logspace(-30, 6, 50, dtype=torch.float64)])
    pool = BackgroundPool.from_weights(weights)
    torch.testing.assert_close(pool.weights, weights, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="ascend needs epsilon below 1"):
        pool.ascend(torch.tensor([1]), torch.ones(1), lr=1.0)
    for bad, message in (
        (torch.tensor([1.0, -1.0]), "got -1.0 at position 1"),
        (torch.tensor([math.nan]), "got nan at position 0"),
        (torch.ones(0), "N >= 1"),
        (torch.zeros(3), "every example has weight zero"),
    ):
        with pytest.raises(ValueError, match=message):
            BackgroundPool.from_weights(bad)
    with pytest.raises(TypeError, match=r"weights must be a torch\.Tensor, an array or numbers, got dict"):
        BackgroundPool.from_weights({0: 1.0})


def test_a_state_that_does_not_fit_changes_nothing(generator: torch.Generator) -> None:
    pool = BackgroundPool(10)
    pool.ascend(pool.sample(4, generator=generator)[0], torch.ones(4), lr=10.0)
    before = pool.state_dict()
    omega, velocity, scale = before.values()
    for bad, message in (
        ({"omega": torch.full((10,), -math.inf)}, "every example has weight zero"),
        ({"velocity": torch.full((10,), math.inf)}, "must be finite"),
        ({"scale": scale * 3}, "scale.. does not belong"),
        ({"scale": scale * 2.0**-20}, "scale.. does not belong"),
        ({"scale": torch.full((4,), math.nan, dtype=torch.float64)}, "scale.. does not belong"),
        ({"scale": scale[:3]}, r"scale.. must be float64 of shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            pool.load_state_dict({**before, **bad})
        assert all(torch.equal(before[name], tensor) for name, tensor in pool.state_dict().items())
    pool.load_state_dict({"omega": omega, "velocity": velocity})
    assert_sums_are_right(pool)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 4096, 4097, 64**3 + 1])
def test_a_new_pool_has_the_sums_of_a_pass(size: int, epsilon: float) -> None:
    assert_sums_are_right(BackgroundPool(size, epsilon=epsilon, initial_weight=0.7))


class ElsewhereGenerator(torch.Generator):
    device = torch.device("cuda")


def test_a_generator_must_fit() -> None:
    pool = BackgroundPool(5)
    for call in (lambda g: pool.sample(2, generator=g), lambda g: pool.select(0.5, generator=g)):
        with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, got NoneType"):
            call(None)
        with pytest.raises(ValueError, match="generator must be on cpu like the pool, got cuda"):
            call(ElsewhereGenerator())


@pytest.mark.parametrize("mode", ["exact", "sparse"])
def test_a_bad_batch_changes_nothing(mode: str) -> None:
    pool = pool_of(LAYOUTS["a leaf and one"])
    before, masses = pool.state_dict(), pool._state.masses.clone()
    index = torch.tensor([3, 64])
    for bad_index, loss, lr, message in (
        (torch.tensor([3, 65]), torch.ones(2), 1.0, "index must be in 0 … 64, got 65"),
        (torch.tensor([-1, 3]), torch.ones(2), 1.0, "index must be in 0 … 64, got -1"),
        (index, torch.tensor([1.0, -1e-9]), 1.0, "at position 1 .example 64"),
        (index, torch.tensor([math.inf, 1.0]), 1.0, "got inf at position 0"),
        (index, torch.tensor([1e38, 1.0]), 1e5, "must stay in float32's range"),
    ):
        with pytest.raises(ValueError, match=message):
            pool.ascend(bad_index, loss, lr=lr, mode=mode)
        assert all(torch.equal(before[name], tensor) for name, tensor in pool.state_dict().items())
        assert torch.equal(masses, pool._state.masses)
    with pytest.raises(ValueError, match=r'mode must be "exact" or "sparse", got .dense.'):
        pool.ascend(index, torch.ones(2), lr=1.0, mode="dense")


@pytest.mark.parametrize("mode", ["exact", "sparse"])
@pytest.mark.parametrize("epsilon", [0.0, 0.01])
def test_steps_where_every_weight_is_tiny(epsilon: float, mode: str) -> None:
    """w = 2e-35: factors of the gradient leave float32 though the gradient does not."""
    pool = BackgroundPool(100, epsilon=epsilon, momentum=0.0)
    state = {"omega": torch.full((100,), -80.0), "velocity": torch.zeros(100)}
    pool.load_state_dict(state)
    index, loss = torch.tensor([3]), torch.tensor([1e5])
    want = state["omega"] + 1e-4 * reference.gradient_of(state["omega"].double(), index, loss.double(), epsilon)
    pool.ascend(index, loss, lr=1e-4, mode=mode)
    torch.testing.assert_close(pool.state_dict()["omega"], want.clamp_min(-80).float(), rtol=1e-6, atol=0)
    pool = BackgroundPool(100, epsilon=epsilon, momentum=0.0)
    pool.load_state_dict(state)
    before = pool.state_dict()
    with pytest.raises(ValueError, match="by the pool's sums, must stay in float32's range"):
        pool.ascend(index, loss * 100, lr=1e-4, mode=mode)
    assert all(torch.equal(before[name], tensor) for name, tensor in pool.state_dict().items())
